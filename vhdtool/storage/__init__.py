"""The seam to the bytes of an image: files, block devices, LUNs and memory behind one protocol.

locking/   Who may write an image: locks on the file itself, and what tells one
           file from another
base       What a storage can do, and how it says that it could not
borrowed   A storage that its user may close while its owner still needs it
faulty     A storage that fails when it is told to
file       A file or block device, with O_DIRECT where asked for and possible
iscsi      A LUN as a storage: a block device that needs no kernel module, and
           keeps its length
memory     A storage in memory, sparse, so that a test may hold a disk of
           terabytes
mixins     Halves that storages share: the writing one where nothing is ever
           written, and the end
open       An image wherever it lies: in a file, on a block device, or on a LUN
punch      Holes: the one system call that Python's os module lacks
recording  A storage that writes down what is done to it, for crash replay
scsi       A LUN over iSCSI, without the kernel: SCSI commands by way of the
           system's libiscsi
sparse     Where a file has data, and where only holes
"""

from vhdtool.storage.base import (
    LockedStorage,
    Storage,
    StorageError,
    discard,
    will_need,
)
from vhdtool.storage.faulty import FaultyStorage
from vhdtool.storage.file import FileStorage
from vhdtool.storage.memory import MemoryStorage
from vhdtool.storage.recording import Operation, RecordingStorage

__all__ = [
    "FaultyStorage",
    "FileStorage",
    "LockedStorage",
    "MemoryStorage",
    "Operation",
    "RecordingStorage",
    "Storage",
    "StorageError",
    "discard",
    "will_need",
]
