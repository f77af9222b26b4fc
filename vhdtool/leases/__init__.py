"""Who may write an image: the lease, the epoch record, lock managers and reservations.

claim             Claims: the lock on an image together with its lease
epoch_record      The epoch record: a file of 512-byte sectors beside the image
external          A lease that a lock manager, or the storage itself, holds
factory           Which kind of lease a disk has: the value of `--lease`
lease             The lease of a disk, by the epoch record
location          The location of an image's epoch record, or of its pointer
owner             The owner of a lease, and the proof that it is gone
sanlock           sanlock as a lease backend
scsi_reservation  A SCSI-3 persistent reservation as a lease backend
shared_file       A small file on the shared storage that hosts change in turn:
                  fresh reads, locks on its bytes
"""
