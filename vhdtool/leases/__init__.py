"""Who may use a disk: the epoch record, and what else can keep a lease."""
