"""Changed-block tracking as blktap keeps it: a bit for each 64 KiB that was ever written.

The log is a file that stands ready: 48 bytes of header (two UUIDs, a flag, the disk's size), then
the bitmap, the lowest bit of a byte first. Source: blktap's cbt-util.h and block-log.c.
"""

import errno
import mmap
import os
import threading

from vhdtool.image.disk.open import OpenImage
from vhdtool.storage import StorageError

HEADER = 48
TRACKED = 64 << 10


class ChangeLog:
    """An image whose writes are noted before they are done. Offsets and lengths are bytes."""

    def __init__(self, image: OpenImage, path: str) -> None:
        """Raises StorageError when the log is not there, or too short for the disk."""
        self.inner = image
        self.size = image.size
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

    @property
    def last_metadata(self) -> float | None:
        return self.inner.last_metadata

    @property
    def truncated_to(self) -> int | None:
        return self.inner.truncated_to

    @property
    def parent(self) -> object:
        return getattr(self.inner, "parent", None)

    def _note(self, offset: int, length: int) -> None:
        if length <= 0:
            return
        with self._lock:
            for block in range(offset // TRACKED, (offset + length - 1) // TRACKED + 1):
                self._map[HEADER + block // 8] |= 1 << block % 8

    def read(self, offset: int, length: int) -> bytes:
        return self.inner.read(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._note(offset, len(data))
        self.inner.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._note(offset, length)
        self.inner.write_zeroes(offset, length)

    def trim(self, offset: int, length: int) -> None:
        self._note(offset, length)
        self.inner.trim(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        self.inner.prefetch(offset, length)

    def flush(self) -> None:
        self.inner.flush()
        self._map.flush()

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        return self.inner.extents(offset, length, most)

    def finish(self) -> bool:
        self._map.flush()
        return self.inner.finish()

    def abandon(self) -> None:
        self._map.close()
        self.inner.abandon()
