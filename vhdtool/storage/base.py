"""What a storage can do, and how it says that it could not."""

import os
from typing import Protocol, Self, runtime_checkable

from vhdtool.errors import VhdtoolError


class StorageError(VhdtoolError):
    """The operating system refused an operation; `errno` is its number."""

    def __init__(self, name: str, doing: str, errno: int) -> None:
        super().__init__(f"{name}: cannot {doing}: {os.strerror(errno)}")
        self.errno = errno


@runtime_checkable
class Storage(Protocol):
    """A flat array of bytes. Offsets and lengths are in bytes; all methods raise StorageError."""

    name: str
    """For messages: a path, or what the storage stands for."""

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; fewer past the end, none behind it."""

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data`; a gap behind the old end reads back as zeros."""

    def zero(self, offset: int, length: int) -> None:
        """Makes a range read back as zeros, as a hole where possible; may extend the end."""

    def truncate(self, size: int) -> None:
        """Cuts or extends to `size` bytes."""

    def flush(self) -> None:
        """Returns when all that was written is on stable storage."""

    def size(self) -> int:
        """Bytes up to the end."""

    def close(self) -> None:
        """Gives the storage up; does not flush."""


@runtime_checkable
class LockedStorage(Storage, Protocol):
    """A storage that holds the lock of an image, which can be lost."""

    def check_identity(self) -> None:
        """Raises LeaseLost when the image's name does not lead to it any more."""

    def lock_is_lost(self) -> bool:
        """Whether another has the lock; False where that cannot be told."""

    def reopened(self) -> Self:
        """The same image, open anew, with the lock; this one must be closed then."""


def discard(storage: Storage, offset: int, length: int) -> None:
    """Frees what a range takes, where that costs little; it reads as before then, or as zeros.

    Raises StorageError.
    """
    getattr(storage, "discard", storage.zero)(offset, length)


def will_need(storage: Storage, offset: int, length: int) -> None:
    """The range is going to be read: a storage with a cache may fetch it now."""
    fetch = getattr(storage, "will_need", None)
    if fetch is not None:
        fetch(offset, length)
