"""The seam: everything that this package does to a disk goes through a `Storage`."""

from vhdtool.storage.base import (
    LockedStorage,
    Storage,
    StorageError,
    discard,
    pwrite_together,
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
    "pwrite_together",
    "will_need",
]
