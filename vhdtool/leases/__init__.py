"""Who may use a disk: the lease, the epoch record beside the image, and other lease keepers.

claim             An image for this process alone: the lock on it, and its
                  lease where it has an epoch record
epoch_record      The epoch record: a file of 512-byte sectors beside the
                  image, on the shared storage
external          A lease that something else than the epoch record keeps:
                  a lock manager, or the storage itself
factory           Which backend keeps a disk's lease, as a person writes
                  it behind `--lease`
lease             The lease of a disk: who may use it, by the epoch record
                  beside the image
location          Where an image's epoch record is: beside the real file,
                  whatever name leads to it
owner             Who holds a lease: a process of a machine, and the proof
                  that it is gone
sanlock           A lease that sanlock keeps: its daemon holds it for this
                  process, on the shared storage
scsi_reservation  A lease that the storage itself keeps: a SCSI-3
                  persistent reservation of a LUN
"""
