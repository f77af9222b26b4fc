"""Read-only views of an image: a file, and a view with some bytes replaced in memory.

Both are storages of `vhdtool.storage`, so that the strict check and the metadata dump run on them
too. Writing raises.
"""

import bisect
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from vhdtool.oracle.evidence.files import LARGEST_IMAGE, open_regular
from vhdtool.storage.base import ReadOnlyStorage

Extent = tuple[int, int]
"""(start, end) in bytes of the file, half open."""


class View(ReadOnlyStorage):
    """A storage that also knows which of its ranges hold data."""

    def extents(self) -> Sequence[Extent]:
        """Rising, disjoint ranges outside which the file reads as zeros."""
        raise NotImplementedError


class FileView(View):
    """A file opened for reading. A context manager.

    Raises TornRecord if it is not a regular file, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._fd = open_regular(path, LARGEST_IMAGE)
        self._size = os.fstat(self._fd).st_size
        self._extents: list[Extent] | None = None

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def size(self) -> int:
        return self._size

    def extents(self) -> Sequence[Extent]:
        if self._extents is None:
            self._extents = list(_data_of(self._fd, self._size))
        return self._extents

    def close(self) -> None:
        os.close(self._fd)


def _data_of(fd: int, size: int) -> list[Extent]:
    """The ranges of a file that are not holes."""
    found: list[Extent] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            # The file system has no SEEK_DATA: all of the file may be data.
            return [(0, size)]
        found.append((start, min(position, size)))
    return found


class OverlayView(View):
    """A view with some bytes replaced, in memory. Patches must lie inside the file."""

    def __init__(self, base: View, patches: Sequence[tuple[int, bytes]]) -> None:
        self.name = base.name
        self._base = base
        self._patches = sorted(patches)
        self._starts = [start for start, _ in self._patches]
        self._longest = max((len(patch) for _, patch in patches), default=0)
        self._extents: list[Extent] | None = None

    def pread(self, offset: int, length: int) -> bytes:
        data = self._base.pread(offset, length)
        end = offset + len(data)
        nearest = bisect.bisect_left(self._starts, offset - self._longest)
        for start, patch in self._patches[nearest:]:
            if start >= end:
                break
            low, high = max(offset, start), min(end, start + len(patch))
            if low < high:
                middle = patch[low - start : high - start]
                data = data[: low - offset] + middle + data[high - offset :]
        return data

    def size(self) -> int:
        return self._base.size()

    def extents(self) -> Sequence[Extent]:
        if self._extents is None:
            patched = [(start, start + len(patch)) for start, patch in self._patches]
            self._extents = merge([*self._base.extents(), *patched])
        return self._extents


def merge(extents: Sequence[Extent]) -> list[Extent]:
    """The same ranges, rising and disjoint."""
    merged: list[Extent] = []
    for start, end in sorted(extents):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def clip(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """The parts of rising, disjoint `extents` inside start..end."""
    first = max(bisect.bisect_right(extents, (start, 1 << 63)) - 1, 0)
    parts = []
    for low, high in extents[first:]:
        if low >= end:
            break
        if high > start:
            parts.append((max(low, start), min(high, end)))
    return parts
