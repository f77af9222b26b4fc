"""A disk as a file object of Python's, for programs that read or write files."""

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdtool.errors import ClosedError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_STEP = 1 << 20


class DiskFile(io.RawIOBase):
    """An open disk as an unbuffered binary file with a position of its own, from 0 on.

    `close` leaves the disk open. `flush` makes durable what was written. The disk keeps its size:
    a write stops at its end, as on a block device.
    """

    def __init__(
        self,
        name: str,
        size: int,
        read: Callable[[int, memoryview], int],
        write: Callable[[int, memoryview], int] | None = None,
        flush: Callable[[], None] | None = None,
    ) -> None:
        """`read` fills a buffer from a guest byte on; without `write` the file is read-only."""
        super().__init__()
        self.name = name
        self.mode = "rb" if write is None else "rb+"
        self._size, self._read, self._write, self._flush = size, read, write, flush
        self._at = 0

    def readable(self) -> bool:
        self._require_open()
        return True

    def writable(self) -> bool:
        self._require_open()
        return self._write is not None

    def seekable(self) -> bool:
        self._require_open()
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        self._require_open()
        count = self._read(self._at, memoryview(buffer).cast("B"))
        self._at += count
        return count

    def readall(self) -> bytes:
        parts = []
        while part := self.read(_STEP):
            parts.append(part)
        return b"".join(parts)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as much as lies before the end of the disk; return the number of bytes.

        Raises OSError (ENOSPC) at the end, and io.UnsupportedOperation for a disk that was opened
        for reading.
        """
        self._require_open()
        if self._write is None:
            raise io.UnsupportedOperation(f"{self.name}: is open for reading only")
        view = memoryview(data).cast("B")
        part = view[: max(self._size - self._at, 0)]
        if view and not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        self._write(self._at, part)
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._require_open()
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        if whence not in starts or starts[whence] + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._at = starts[whence] + offset
        return self._at

    def tell(self) -> int:
        self._require_open()
        return self._at

    def flush(self) -> None:
        super().flush()
        if self._flush is not None:
            # A disk that was closed has made all durable.
            with suppress(ClosedError):
                self._flush()

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
