"""Holes of a sparse file: to punch them, and to find the data between them."""

import errno
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from vhdtool.ranges import DataRange
from vhdtool.storage.base import Storage
from vhdtool.vhd.units import SECTOR, pad

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EPERM)


@functools.cache
def _fallocate() -> tuple[Callable[..., Any], Callable[[], int]] | None:
    # Imported late: ctypes would add milliseconds to the start of every command.
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call, ctypes.get_errno


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Deallocate a range, which then reads as zeros; return False where that is not supported.

    Raises OSError when it is supported and fails.
    """
    found = _fallocate()
    if found is None:
        return False
    call, get_errno = found
    if call(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0:
        return True
    number = get_errno()
    # A block device accepts only whole blocks of its own size.
    if number in (*_UNABLE, errno.EINVAL):
        return False
    raise OSError(number, "fallocate")


def preallocate(fd: int, end: int) -> bool:
    """Reserve space up to byte `end`, also behind the end of the file, whose length stays.

    Returns False where the file system does not support it. Raises OSError when space is short.
    """
    found = _fallocate()
    if found is None:
        return False
    call, get_errno = found
    if call(fd, _KEEP_SIZE, 0, end) == 0:
        return True
    number = get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number))


class DataMap:
    """Finds the data of an open file. Remembers the last range, which is often asked for again.

    (To find the end of a long range costs the kernel time in proportion to its length.)
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = (0, 0)
        self._empty_from: int | None = None

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges [first, stop) of data within bytes [start, end).

        All of it counts as data on a file system that cannot report holes.
        """
        while start < end:
            found = self._next(start)
            if found is None or found[0] >= end:
                return
            yield max(found[0], start), min(found[1], end)
            start = found[1]

    def _next(self, start: int) -> tuple[int, int] | None:
        last = self._last
        if last[0] <= start < last[1]:
            return last
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
        self._last = last = (first, stop)
        return last


def data_map(storage: Storage) -> DataMap | None:
    """The data of a storage; None where it has no descriptor, so that all of it may be data."""
    fd = storage.fileno()
    return None if fd is None else DataMap(fd)


class Contents:
    """Which ranges of a storage may hold data, in whole sectors.

    It caches what the kernel reported. While a file is being written, make a new one for each
    question: a cached hole may hold data by now.
    """

    def __init__(self, storage: Storage, size: int | None = None) -> None:
        """`size`: where the file counts as ended, by default where it does end."""
        self._size = storage.size() if size is None else size
        self._map = data_map(storage)

    def data_ranges(self, offset: int, length: int) -> Iterator[DataRange]:
        """Yield the ranges of `length` bytes from `offset`, in order.

        A range behind the end of the file counts as data: reading it fails, as it should.
        """
        end = offset + length
        if self._map is None:
            yield length, True
            return
        for first, stop in self._map.ranges(offset, min(end, self._size)):
            first = max(first // SECTOR * SECTOR, offset)
            stop = min(pad(stop), end)
            if first > offset:
                yield first - offset, False
            yield stop - first, True
            offset = stop
        inside = max(offset, min(end, self._size // SECTOR * SECTOR))
        if inside > offset:
            yield inside - offset, False
        if end > inside:
            yield end - inside, True
