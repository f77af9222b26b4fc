"""Reads and writes with O_DIRECT: from and to aligned buffers, in whole sectors."""

import errno
import mmap
import os

ALIGN = 512
_SMALL = 1 << 20
"""Bytes of a buffer that is kept for the next request."""
_LARGEST = 4 << 20
"""Bytes of one system call."""
_SPARE_BUFFERS = 8


class DirectIO:
    """Transfers between a descriptor opened with O_DIRECT and memory of any alignment.

    Safe to share between threads. Raises OSError: EINVAL where the file system needs a larger
    alignment than a sector.
    """

    def __init__(self) -> None:
        self._spare: list[mmap.mmap] = []

    def read(self, fd: int, offset: int, length: int) -> bytes:
        """Return the bytes at `offset`, at most `length`; neither need be aligned."""
        first = offset - offset % ALIGN
        end = -(-(offset + length) // ALIGN) * ALIGN
        parts = []
        while first < end:
            part = self._read(fd, first, min(end - first, _LARGEST))
            parts.append(part)
            first += len(part)
            if not part or len(part) % ALIGN:
                break
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        skip = offset % ALIGN
        return data if skip == 0 and len(data) <= length else data[skip : skip + length]

    def _read(self, fd: int, offset: int, length: int) -> bytes:
        buffer = self._take(length)
        with memoryview(buffer) as whole, whole[:length] as view:
            count = os.preadv(fd, [view], offset)
            data = bytes(view[:count])
        self._give_back(buffer)
        return data

    def write(self, fd: int, offset: int, data: memoryview) -> None:
        """Write all of `data`; offset and length are multiples of ALIGN."""
        while data:
            part = data[:_LARGEST]
            buffer = self._take(len(part))
            with memoryview(buffer) as whole, whole[: len(part)] as view:
                view[:] = part
                count = os.pwritev(fd, [view], offset)
            self._give_back(buffer)
            offset += count
            data = data[count:]
            if count % ALIGN:
                # Only a full file system ends a write within a sector.
                raise OSError(errno.ENOSPC, "short write")

    def _take(self, length: int) -> mmap.mmap:
        if length <= _SMALL:
            try:
                return self._spare.pop()
            except IndexError:
                return mmap.mmap(-1, _SMALL)
        return mmap.mmap(-1, length)

    def _give_back(self, buffer: mmap.mmap) -> None:
        if len(buffer) == _SMALL and len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(buffer)

    def clear(self) -> None:
        """Free the spare buffers."""
        self._spare.clear()
