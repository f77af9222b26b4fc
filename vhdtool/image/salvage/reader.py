"""Reading a damaged image: the data that can be trusted, and the ranges that are lost."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import ClosedError, CorruptImage
from vhdtool.image.chain.disk_file import DiskFile
from vhdtool.image.chain.export import CHUNK, Progress
from vhdtool.image.chain.layers import Extent, Layer
from vhdtool.image.create.convert import Format, finish_flat, target_file
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.metadata.orphans import Orphan
from vhdtool.ranges import Range, join, merge
from vhdtool.storage import FileStorage, Storage, StorageError
from vhdtool.storage.base import BorrowedStorage, Closing
from vhdtool.vhd.units import DEFAULT_BLOCK, SECTOR

_UNREADABLE_STEP = 4096
"""Bytes that count as lost together where the operating system reports a read error."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Guest bytes that cannot be trusted or read, and the reason."""

    start: int
    length: int
    reason: str

    @property
    def end(self) -> int:
        return self.start + self.length

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types, and the guest sectors (first, count) they touch."""
        first = self.start // SECTOR
        return {
            "start": self.start,
            "length": self.length,
            "sectors": [first, -(-self.end // SECTOR) - first],
            "why": self.reason,
        }


@dataclass(slots=True)
class DoubtfulLayer:
    """A layer, and its guest ranges (start, end, reason) that cannot be trusted, in order."""

    layer: Layer
    doubts: list[tuple[int, int, str]] = field(default_factory=list)

    def cut(self, start: int, end: int) -> Iterator[tuple[int, int, str | None]]:
        """The parts (start, end, reason) of a range, in order; the reason is None if trusted."""
        index = max(bisect_right(self.doubts, (start, 1 << 70, "")) - 1, 0)
        while start < end and index < len(self.doubts):
            first, stop, reason = self.doubts[index]
            index += 1
            if stop <= start:
                continue
            if first >= end:
                break
            if first > start:
                yield start, first, None
            yield max(first, start), min(stop, end), reason
            start = min(stop, end)
        if start < end:
            yield start, end, None


@dataclass(frozen=True, slots=True)
class LocatedOrphan:
    """An orphan block and the storage of its file."""

    storage: Storage
    orphan: Orphan

    def __str__(self) -> str:
        return f"{self.storage.name}: {self.orphan}"

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types."""
        return {"image": self.storage.name, **self.orphan.as_dict()}

    def copy(self, target: FileStorage) -> None:
        """Copy the present sectors to their offsets in the block; the rest becomes holes."""
        layout = self.orphan.layout
        target.truncate(layout.block_bytes)
        start = layout.data_offset(self.orphan.entry)
        for first, count in self.orphan.runs():
            for skip in range(first * SECTOR, (first + count) * SECTOR, CHUNK):
                size = min(CHUNK, (first + count) * SECTOR - skip)
                data = self.storage.pread(start + skip, size)
                if any(data):
                    target.pwrite(skip, data)


class Salvage(Closing):
    """A damaged image and its parents, open for reading. Made by `open_salvage`."""

    def __init__(
        self,
        layers: list[DoubtfulLayer],
        missing: str | None,
        notes: list[str],
        orphans: list[LocatedOrphan] | None = None,
        placed: list[LocatedOrphan] | None = None,
    ) -> None:
        self._layers = layers
        self._missing = missing
        self.notes = notes
        """Messages about damage that concerns the image as a whole."""
        self.orphans = orphans or []
        """Orphan blocks of the image and its parents of which `read` never returns the data."""
        self.placed = placed or []
        """Orphan blocks that are read where evidence puts them; their position is a guess."""
        self.size = layers[0].layer.size
        self.names = [one.layer.name for one in layers]
        """Paths of the image and the parents that were found."""
        self.closed = False

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[Extent | Lost]:
        """The extents and lost ranges of guest bytes [start, end), in order."""
        if self.closed:
            # Else each read would fail, and all data count as lost.
            raise ClosedError(f"{self.names[0]}: is closed")
        yield from self._pieces(start, self.size if end is None else min(end, self.size), 0)

    def _pieces(self, start: int, end: int, depth: int) -> Iterator[Extent | Lost]:
        for first, stop, reason in self._layers[depth].cut(start, end):
            if reason is not None:
                yield Lost(first, stop - first, reason)
            else:
                yield from self._sound(first, stop, depth)

    def _sound(self, position: int, end: int, depth: int) -> Iterator[Extent | Lost]:
        layer = self._layers[depth].layer
        while position < end:
            try:
                for first, length, offset in layer.ranges(position, end):
                    yield from self._range(first, length, offset, depth)
                    position = first + length
                return
            except (CorruptImage, StorageError) as error:
                step = layer.layout.block_bytes if layer.layout is not None else _UNREADABLE_STEP
                stop = min(end, (position // step + 1) * step)
                yield Lost(position, stop - position, str(error))
                position = stop

    def _range(
        self, start: int, length: int, offset: int | None, depth: int
    ) -> Iterator[Extent | Lost]:
        if offset is not None:
            yield Extent(start, length, depth, offset)
        elif depth + 1 < len(self._layers):
            yield from self._pieces(start, start + length, depth + 1)
        elif self._missing is not None:
            yield Lost(start, length, self._missing)
        else:
            yield Extent(start, length, depth, None)

    def data(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes] | Lost]:
        """(guest byte, data) of the parts of [start, end) that can be read, and lost ranges."""
        for piece in self.pieces(start, end):
            if isinstance(piece, Lost):
                yield piece
            elif piece.offset is not None:
                for skip in range(0, piece.length, CHUNK):
                    size = min(CHUNK, piece.length - skip)
                    yield from self._read(piece.start + skip, size, piece, piece.offset + skip)

    def _read(
        self, start: int, length: int, piece: Extent, offset: int
    ) -> Iterator[tuple[int, bytes] | Lost]:
        name = self._layers[piece.depth].layer.name
        reason = f"{name}: the file ends before its data does"
        try:
            data = self._layers[piece.depth].layer.storage.pread(offset, length)
        except StorageError as error:
            if length > _UNREADABLE_STEP:
                half = length // 2 // SECTOR * SECTOR
                yield from self._read(start, half, piece, offset)
                yield from self._read(start + half, length - half, piece, offset + half)
                return
            data, reason = b"", str(error)
        if data:
            yield start, data
        if len(data) < length:
            yield Lost(start + len(data), length - len(data), reason)

    def read(self, offset: int, length: int) -> bytes:
        """Guest bytes, with zeros for lost ranges; fewer at the end of the disk."""
        length = max(0, min(length, self.size - offset))
        out = bytearray(length)
        for piece in self.data(offset, offset + length):
            if not isinstance(piece, Lost):
                at = piece[0] - offset
                out[at : at + len(piece[1])] = piece[1]
        return bytes(out)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` as `read` does; return the number of bytes, lower at the disk's end."""
        data = self.read(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def as_file(self) -> DiskFile:
        """The disk as a binary file for reading (io.RawIOBase), with zeros for lost ranges."""
        return DiskFile(self.names[0], self.size, self.readinto)

    @property
    def exit_code(self) -> int:
        """2 where something is damaged as a whole, an orphan or a guess; lost ranges add to it."""
        return 2 if self.notes or self.orphans or self.placed else 0

    def guessed(self) -> list[Range]:
        """The ranges of guest bytes that placed orphans have, in order."""
        sectors = [one.orphan.sectors for one in self.placed]
        return merge((one[0] * SECTOR, sum(one) * SECTOR) for one in sectors if one is not None)

    def lost(self) -> list[Lost]:
        """The ranges that are lost according to the metadata, in order; reads no guest data."""
        return merge_lost(piece for piece in self.pieces() if isinstance(piece, Lost))

    def copy(
        self,
        target: FileStorage,
        start: int = 0,
        end: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[int, list[Lost]]:
        """Copy [start, end) to an empty file, where lost ranges become holes.

        Returns (bytes copied, lost ranges).
        """
        stop = self.size if end is None else min(end, self.size)
        target.truncate(max(stop - start, 0))
        copied, lost = 0, []
        for piece in self.data(start, stop):
            if isinstance(piece, Lost):
                lost.append(piece)
                continue
            if any(piece[1]):
                target.pwrite(piece[0] - start, piece[1])
            copied += len(piece[1])
            if progress is not None:
                progress(piece[0] - start)
        return copied, merge_lost(lost)

    def convert(
        self,
        path: str | os.PathLike[str],
        kind: Format = "dynamic",
        *,
        block_bytes: int = DEFAULT_BLOCK,
        batmap: bool = True,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> tuple[int, list[Lost]]:
        """Copy the data that can be trusted to a new image, and zeros for lost ranges.

        Returns (bytes copied, lost ranges). Raises UsageError, ImageExists or StorageError.
        """
        with target_file(self.names, path, kind, self.size, overwrite) as (storage, size):
            if kind == "dynamic":
                create_dynamic(storage, size, block_bytes, batmap)
                return self._copy_to_dynamic(storage, progress)
            result = self.copy(storage, progress=progress)
            finish_flat(storage, kind, size)
        return result

    def _copy_to_dynamic(
        self, storage: FileStorage, progress: Progress | None
    ) -> tuple[int, list[Lost]]:
        copied, lost = 0, []
        disk = DynamicDisk(BorrowedStorage(storage))
        for piece in self.data():
            if isinstance(piece, Lost):
                lost.append(piece)
                continue
            start, data = piece
            if any(data):
                disk.write(start, data)
            copied += len(data)
            if progress is not None:
                progress(start)
        disk.close()
        return copied, merge_lost(lost)

    def close(self) -> None:
        self.closed = True
        for one in self._layers:
            one.layer.close()


def merge_lost(pieces: Iterable[Lost]) -> list[Lost]:
    """Merge neighbours that are lost for the same reason."""
    return list(join(pieces, _merged))


def _merged(one: Lost, other: Lost) -> Lost | None:
    if one.end != other.start or one.reason != other.reason:
        return None
    return Lost(one.start, one.length + other.length, one.reason)
