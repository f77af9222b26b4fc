"""What every storage can do, what some can besides, and the error that all raise."""

import errno
import functools
import os
from types import TracebackType
from typing import Any, Never, Self

from vhdtool.errors import StateError, VhdtoolError


class StorageError(OSError, VhdtoolError):
    """The operating system refused an operation; `errno` is its number.

    Like OSError itself, it is of Python's class for that number where there is one: of
    FileNotFoundError for ENOENT.
    """

    errno: int

    def __new__(cls, *args: Any, **named: Any) -> Self:
        kind: type[Self] = cls
        if cls is StorageError:
            kind = _class_for(args[2] if len(args) > 2 else named["errno"])
        return super().__new__(kind)

    def __init__(self, name: str, doing: str, errno: int, why: str = "") -> None:
        self.errno = errno
        self.strerror = why or os.strerror(errno)
        self.filename = name
        self._doing = doing
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"{self.filename}: cannot {self._doing}: {self.strerror}"

    def __reduce__(self) -> tuple[type["StorageError"], tuple[object, ...]]:
        # A process pool passes errors on by pickle.
        return StorageError, (self.filename, self._doing, self.errno, self.strerror)


_PYTHONS = {
    errno.ENOENT: FileNotFoundError,
    errno.EACCES: PermissionError,
    errno.EPERM: PermissionError,
    errno.EISDIR: IsADirectoryError,
    errno.ENOTDIR: NotADirectoryError,
}
"""errno -> Python's class for it."""


@functools.cache
def _class_for(number: int) -> Any:
    """StorageError, as a subclass of Python's class for that errno too."""
    other = _PYTHONS.get(number)
    if other is None:
        return StorageError
    # The name stays: events and messages have it.
    return type("StorageError", (StorageError, other), {"__module__": __name__})


class Closing:
    """A context manager that closes."""

    def close(self) -> None:
        """Release what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Storage(Closing):
    """A flat array of bytes. Offsets and lengths are in bytes; all methods raise StorageError.

    A subclass implements the methods that raise NotImplementedError here. The attributes and the
    other methods declare what only some storages can do; their defaults suit all others.
    """

    name: str
    """For messages: a path, or what the storage stands for."""
    writable: bool = True
    is_block_device: bool = False
    """Whether the length is fixed, as that of a block device or LUN."""
    direct: bool = False
    """Whether reads and writes bypass the page cache."""
    holds_lock: bool = False
    """Whether it holds the image's lock, so that the three methods at the end have a meaning."""

    def pread(self, offset: int, length: int) -> bytes:
        """Return the bytes at `offset`; fewer at the end, none behind it."""
        raise NotImplementedError

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; a gap behind the old end reads back as zeros."""
        raise NotImplementedError

    def zero(self, offset: int, length: int) -> None:
        """Make a range read back as zeros, as a hole where possible; may extend the end."""
        raise NotImplementedError

    def truncate(self, size: int) -> None:
        """Cut or extend to `size` bytes; a block device keeps its length."""
        raise NotImplementedError

    def flush(self) -> None:
        """Return when all that was written is on stable storage."""
        raise NotImplementedError

    def size(self) -> int:
        """Return the offset of the end."""
        raise NotImplementedError

    # capabilities

    def fileno(self) -> int | None:
        """The file descriptor, where one reaches all bytes at their offsets."""
        return None

    def readinto(self, offset: int, view: memoryview) -> int:
        """Fill `view` with the bytes at `offset`; return their number, lower at the end."""
        data = self.pread(offset, len(view))
        view[: len(data)] = data
        return len(data)

    def discard(self, offset: int, length: int) -> None:
        """Free a range where that is cheap; it reads back unchanged, or as zeros."""
        self.zero(offset, length)

    def will_need(self, offset: int, length: int) -> None:
        """Announce that a range will be read, so that a cache may fetch it now."""

    # a storage that holds the lock of its image

    def check_identity(self) -> None:
        """Raise LeaseLost when the image's path does not lead to the open file any more."""

    def lock_is_lost(self) -> bool:
        """Whether another process has the lock; False where that cannot be known."""
        return False

    def reopened(self) -> Self:
        """Open the same image anew and move the lock there; this storage must close then."""
        raise NotImplementedError


class ReadOnlyStorage(Storage):
    """A storage that is never written: a write raises StateError."""

    name = ""
    writable = False

    def _refuse(self) -> Never:
        raise StateError(f"{self.name}: is open for reading only")

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._refuse()

    def zero(self, offset: int, length: int) -> None:
        self._refuse()

    def truncate(self, size: int) -> None:
        self._refuse()

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def close(self) -> None:
        """Release nothing by default."""


class BorrowedStorage(Storage):
    """Passes everything on to `inner`, except `close`: the owner of `inner` closes it."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.name = inner.name
        self.writable = inner.writable
        self.is_block_device = inner.is_block_device

    def pread(self, offset: int, length: int) -> bytes:
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.inner.pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self.inner.zero(offset, length)

    def truncate(self, size: int) -> None:
        self.inner.truncate(size)

    def flush(self) -> None:
        self.inner.flush()

    def size(self) -> int:
        return self.inner.size()

    def close(self) -> None:
        """Leave `inner` open."""
