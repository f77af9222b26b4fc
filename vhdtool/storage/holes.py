"""Where a file has data, and where only holes."""

import errno
import os
from collections.abc import Iterator


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
        first, stop = self._known
        if first <= start < stop:
            return self._known
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
        self._known = (first, stop)
        return self._known
