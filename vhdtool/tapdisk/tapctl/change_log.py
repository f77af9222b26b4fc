"""blktap's changed-block tracking: a bit for each 64 KiB that was ever written.

The log is a file that exists already: a header of 48 bytes (two UUIDs, a flag, the disk's size),
then the bitmap, the lowest bit of a byte first. Source: blktap's cbt-util.h and block-log.c.
"""

import errno
import mmap
import os
import threading

from vhdtool.image.disk.base import OpenDisk
from vhdtool.storage import StorageError
from vhdtool.tapdisk.tapctl.filters import ImageFilter

HEADER = 48
TRACKED = 64 << 10
"""Bytes for each bit."""


class ChangeLog(ImageFilter):
    """Records each write in the log before it is made. Offsets and lengths are bytes."""

    def __init__(self, image: OpenDisk, path: str) -> None:
        """Raises StorageError when the log does not exist, or is too short for the disk."""
        super().__init__(image)
        self._lock = threading.Lock()
        needed = HEADER + (-(-image.size // TRACKED) + 7) // 8
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(path, "open the log of changes", error.errno or errno.EIO) from None
        try:
            if os.fstat(fd).st_size < needed:
                raise StorageError(
                    path, f"log changes of {image.size} bytes in less than {needed}", errno.EINVAL
                )
            self._map = mmap.mmap(fd, needed)
        finally:
            os.close(fd)

    def _record(self, offset: int, length: int) -> None:
        if length <= 0:
            return
        with self._lock:
            for block in range(offset // TRACKED, (offset + length - 1) // TRACKED + 1):
                self._map[HEADER + block // 8] |= 1 << block % 8

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._record(offset, len(data))
        self.inner.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._record(offset, length)
        self.inner.write_zeroes(offset, length)

    def trim(self, offset: int, length: int) -> None:
        self._record(offset, length)
        self.inner.trim(offset, length)

    def flush(self) -> None:
        self.inner.flush()
        self._map.flush()

    def finish(self) -> bool:
        self._map.flush()
        return self.inner.finish()

    def abandon(self) -> None:
        self._map.close()
        self.inner.abandon()
