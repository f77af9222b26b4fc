"""The bytes behind a file object of Python's: a BytesIO, a member of an archive, a remote file."""

import errno
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from vhdtool.errors import UsageError
from vhdtool.storage.base import Storage, StorageError

FileObject = IO[bytes] | io.RawIOBase | io.BufferedIOBase
_CHUNK = 1 << 20


class FileObjectStorage(Storage):
    """A binary file object that can seek. Its owner closes it, and leaves its position to us.

    Safe to share between threads: they take turns, since a file object has one position.
    Raises UsageError for a file object of another kind, and StorageError.
    """

    def __init__(self, file: FileObject, writable: bool = False) -> None:
        self._file = file
        self.writable = writable
        # Files have a path there, or a descriptor's number.
        self.name = f"{getattr(file, 'name', None) or type(file).__name__}"
        self._turn = threading.Lock()
        self.has_descriptor = _has_descriptor(file)
        """Whether a file of the operating system is behind it."""
        if not hasattr(file, "seekable"):
            raise UsageError(f"{file!r} is neither a path nor a file object")
        if not file.seekable():
            raise UsageError(f"{self.name}: cannot seek, and an image is not read in order")
        if isinstance(self._read(0, 0), str):
            raise UsageError(f"{self.name}: is a text file; open it in binary mode")

    @contextmanager
    def _access(self, doing: str) -> Iterator[None]:
        with self._turn:
            try:
                yield
            except io.UnsupportedOperation:
                raise StorageError(self.name, doing, errno.EBADF) from None
            except OSError as error:
                raise StorageError(self.name, doing, error.errno or errno.EIO) from None
            except ValueError:
                # Python's own for a file object that is closed.
                raise StorageError(self.name, doing, errno.EBADF) from None

    def _read(self, offset: int, length: int) -> bytes:
        """One read, which may be short. Raises StorageError for a file without data just now."""
        with self._access(f"read {length} bytes at {offset}"):
            self._file.seek(offset)
            data = self._file.read(length)
            if data is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return data

    def pread(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length)
        while len(data) < length:
            more = self._read(offset + len(data), length - len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        with self._access(f"write {len(view)} bytes at {offset}"):
            self._file.seek(offset)
            while view:
                count = self._file.write(view)
                if not count:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[count:]

    def zero(self, offset: int, length: int) -> None:
        for skip in range(0, length, _CHUNK):
            self.pwrite(offset + skip, bytes(min(_CHUNK, length - skip)))

    def truncate(self, size: int) -> None:
        if size > self.size():
            # A BytesIO does not grow by `truncate`.
            self.pwrite(size - 1, b"\0")
            return
        with self._access(f"set its length to {size}"):
            self._file.truncate(size)

    def flush(self) -> None:
        """Flush the file object: what that makes durable is its own promise."""
        with self._access("flush it"):
            self._file.flush()

    def size(self) -> int:
        with self._access("find its size"):
            self._file.seek(0, os.SEEK_END)
            return self._file.tell()

    def close(self) -> None:
        """Leave the file object open."""


def _has_descriptor(file: FileObject) -> bool:
    try:
        file.fileno()
    except (OSError, AttributeError):
        return False
    return True
