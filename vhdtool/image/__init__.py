"""Images on a storage: create, check, read, repair, compare. One operation a module."""
