"""Names of the files in ranges of a guest's disk (ext, NTFS, FAT).

The libraries libfsext, libfsntfs and libfsfat read the file system; the extra `damage` installs
them.
"""

import importlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.image.salvage.ntfs import Read
from vhdtool.image.salvage.partitions import Partition
from vhdtool.ranges import Range
from vhdtool.vhd.units import SECTOR

_LIBRARIES = {"ext": "pyfsext", "ntfs": "pyfsntfs", "fat": "pyfsfat", "exfat": "pyfsfat"}
_DEEPEST = 200
_MOST = 5_000_000
"""[start, end) in bytes of the disk."""


@dataclass(frozen=True, slots=True)
class FileHit:
    """A file or directory, and the number of its bytes within the ranges."""

    path: str
    size: int
    damaged: int

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "damaged": self.damaged}


class _Window(io.RawIOBase):
    """A partition as the file that the libraries read."""

    def __init__(self, read: Read, partition: Partition) -> None:
        super().__init__()
        self._read, self._partition = read, partition
        self._at = 0
        copy = partition.boot_copy
        self._boot = b"" if copy is None else read(copy, SECTOR)
        """The boot sector to be shown in place of a lost one."""

    def read(self, size: int = -1) -> bytes:
        left = max(self._partition.length - self._at, 0)
        size = left if size < 0 else min(size, left)
        data = self._read(self._partition.start + self._at, size) if size else b""
        if self._at < len(self._boot):
            part = self._boot[self._at :][: len(data)]
            data = part + data[len(part) :]
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._partition.length}
        self._at = start[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def get_size(self) -> int:
        return self._partition.length

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def files_within(read: Read, partition: Partition, ranges: list[Range]) -> list[FileHit]:
    """Files of the partition that have bytes in `ranges` (sorted, disjoint), by path.

    Raises UsageError when the library is not installed or the file system cannot be opened.
    """
    library = _library(partition.system)
    volume = library.volume()
    try:
        volume.open_file_object(_Window(read, partition))
        root = volume.get_root_directory()
    except OSError as error:
        raise UsageError(f"its file system cannot be read: {_short(error)}") from None
    found = []
    for path, size, extents in _walk(root):
        hit = sum(
            _overlap(ranges, partition.start + offset, partition.start + offset + length)
            for offset, length in _up_to(extents, size)
        )
        if hit:
            found.append(FileHit(path, size, hit))
    volume.close()
    return sorted(found, key=lambda one: one.path)


def _library(system: str | None) -> Any:
    name = _LIBRARIES.get(system or "")
    if name is None:
        raise UsageError("its file system is not known")
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"{name} is missing: pip install 'vhdtool[damage]'") from None


def _short(error: OSError) -> str:
    """The first sentence: the libraries report a whole chain of callers."""
    return str(error).split(". ")[0]


def _walk(root: Any) -> Iterator[tuple[str, int, list[tuple[int | None, int]]]]:
    """(path, size, [(offset in the partition, length)]) of each readable file."""
    left: list[tuple[Any, str, int]] = [(root, "", 0)]
    seen = 0
    while left:
        entry, path, depth = left.pop()
        yield path or "/", _size(entry), _extents(entry)
        yield from _streams(entry, path)
        try:
            count = entry.get_number_of_sub_file_entries()
        except OSError:
            # A damaged directory: its entries have no names.
            continue
        for index in range(count if depth < _DEEPEST else 0):
            try:
                child = entry.get_sub_file_entry(index)
                name = child.get_name()
            except OSError:
                continue
            seen += 1
            if name not in (".", "..") and seen <= _MOST:
                left.append((child, f"{path}/{name}", depth + 1))


def _streams(entry: Any, path: str) -> Iterator[tuple[str, int, list[tuple[int | None, int]]]]:
    """NTFS: named streams beside a file's data."""
    try:
        for index in range(getattr(entry, "number_of_alternate_data_streams", 0)):
            stream = entry.get_alternate_data_stream(index)
            yield f"{path}:{stream.get_name()}", _size(stream), _extents(stream)
    except OSError:
        return


def _size(entry: Any) -> int:
    try:
        return int(entry.get_size())
    except OSError:
        return 0


def _up_to(extents: list[tuple[int | None, int]], size: int) -> Iterator[tuple[int, int]]:
    """The extents of a file's bytes: the last cluster has more than the file.

    >>> list(_up_to([(8192, 4096), (None, 4096), (0, 4096)], 9000))
    [(8192, 4096), (0, 808)]
    """
    left = size
    for offset, length in extents:
        if offset is not None and left > 0:
            yield offset, min(length, left)
        left -= length


def _extents(entry: Any) -> list[tuple[int | None, int]]:
    """(offset in the partition, length) in the order of the file; no offset for a hole."""
    try:
        extents = [entry.get_extent(index) for index in range(entry.get_number_of_extents())]
    except OSError:
        return []
    # Flag 1: a sparse range, which is not on the disk.
    return [(None if flags & 1 else offset, length) for offset, length, flags in extents]


def _overlap(ranges: list[Range], start: int, end: int) -> int:
    return sum(max(0, min(stop, end) - max(first, start)) for first, stop in ranges)


def sectors(size: int) -> int:
    """Convert bytes to sectors, rounded up."""
    return -(-size // SECTOR)
