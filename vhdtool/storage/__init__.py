"""Where the bytes of an image are: files, block devices, LUNs and memory behind one class.

base         Storage: what every storage can do and what some can besides; the error they raise
direct       Reads and writes with O_DIRECT: from and to aligned buffers, in whole sectors
file         A file or block device, with O_DIRECT where asked for and possible
file_object  A file object of Python's: a BytesIO, a member of an archive, a remote file
image_lock   Byte-range locks on an image: who may write it, whatever path leads to it
iscsi        A LUN: a block device that needs no kernel module
locked_file  The file or block device of an image, locked through the descriptor that does the I/O
memory       Sparse memory, so that a test may use a disk of terabytes
paths        What a path leads to: its storage, persistent name, mount, file behind a loop device
scsi         SCSI commands to a LUN over iSCSI, through the system's libiscsi
sparse       Holes of a sparse file: to punch them, and to find the data between them
"""

from vhdtool.storage.base import Storage, StorageError
from vhdtool.storage.file import FileStorage
from vhdtool.storage.memory import MemoryStorage

__all__ = ["FileStorage", "MemoryStorage", "Storage", "StorageError"]
