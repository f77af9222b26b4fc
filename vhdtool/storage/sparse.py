"""Where a file has data, and where only holes."""

import errno
import os
from collections.abc import Iterable, Iterator

from vhdtool.storage.base import Storage
from vhdtool.storage.file import ALIGN, FileStorage

Held = tuple[int, bool]
"""(bytes, whether they may hold data); where False they read as zeros."""


class DataMap:
    """The ranges of an open file that are no holes. Remembers the last one that it asked for.

    (To find the end of a long range costs the kernel time in its length.)
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._known = (0, 0)
        self._empty_from: int | None = None

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """[first, stop) of the data within bytes [start, end).

        All of it is data where the file system does not tell.
        """
        while start < end:
            found = self._next(start)
            if found is None or found[0] >= end:
                return
            yield max(found[0], start), min(found[1], end)
            start = found[1]

    def _next(self, start: int) -> tuple[int, int] | None:
        known = self._known
        if known[0] <= start < known[1]:
            return known
        if self._empty_from is not None and start >= self._empty_from:
            return None
        try:
            first = os.lseek(self._fd, start, os.SEEK_DATA)
            stop = os.lseek(self._fd, first, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                self._empty_from = start
                return None
            first, stop = 0, 1 << 63
        self._known = known = (first, stop)
        return known


class Contents:
    """Which ranges of a storage may hold data, in whole sectors.

    It remembers what the kernel said. For a file that is being written, make one for each question:
    an old answer would call a hole what holds data by now.
    """

    def __init__(self, storage: Storage, size: int | None = None) -> None:
        """`size`: where the file counts as ended, which is where it ends unless given."""
        self._size = storage.size() if size is None else size
        self._map = DataMap(storage.fileno()) if isinstance(storage, FileStorage) else None

    def held(self, offset: int, length: int) -> Iterator[Held]:
        """The ranges of `length` bytes from `offset`, in order.

        What lies behind the end of the file counts as data: reading it fails, as it should.
        """
        end = offset + length
        if self._map is None:
            yield length, True
            return
        for first, stop in self._map.ranges(offset, min(end, self._size)):
            first = max(first // ALIGN * ALIGN, offset)
            stop = min(-(-stop // ALIGN) * ALIGN, end)
            if first > offset:
                yield first - offset, False
            yield stop - first, True
            offset = stop
        inside = max(offset, min(end, self._size // ALIGN * ALIGN))
        if inside > offset:
            yield inside - offset, False
        if end > inside:
            yield end - inside, True


def joined(ranges: Iterable[Held], most: int) -> list[Held]:
    """The first `most` ranges, after neighbours of one kind became one."""
    found: list[Held] = []
    for size, holds in ranges:
        if found and found[-1][1] == holds:
            found[-1] = (found[-1][0] + size, holds)
        elif len(found) == most:
            break
        else:
            found.append((size, holds))
    return found
