"""Reading a damaged image: all that can still be trusted, and a list of the rest."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import CorruptImage
from vhdtool.image.chain.export import CHUNK, Progress
from vhdtool.image.chain.layers import Extent, Layer
from vhdtool.image.metadata.orphans import Orphan
from vhdtool.ranges import join
from vhdtool.storage import FileStorage, Storage, StorageError
from vhdtool.storage.base import Closing
from vhdtool.vhd.units import SECTOR

_SMALLEST = 4096
"""Bytes that are given up at once where the operating system cannot read."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Guest bytes that cannot be trusted or read, and why."""

    start: int
    length: int
    why: str

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
            "why": self.why,
        }


@dataclass(slots=True)
class DoubtfulLayer:
    """A layer, and the guest bytes [start, end) of it that must not be believed."""

    layer: Layer
    doubts: list[tuple[int, int, str]] = field(default_factory=list)

    def cut(self, start: int, end: int) -> Iterator[tuple[int, int, str | None]]:
        """[start, end) in order, each part with the reason to doubt it, or None."""
        index = max(bisect_right(self.doubts, (start, 1 << 70, "")) - 1, 0)
        while start < end and index < len(self.doubts):
            first, stop, why = self.doubts[index]
            index += 1
            if stop <= start:
                continue
            if first >= end:
                break
            if first > start:
                yield start, first, None
            yield max(first, start), min(stop, end), why
            start = min(stop, end)
        if start < end:
            yield start, end, None


@dataclass(frozen=True, slots=True)
class LocatedOrphan:
    """An orphan block, and the file that has it."""

    storage: Storage
    orphan: Orphan

    def __str__(self) -> str:
        return f"{self.storage.name}: {self.orphan}"

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types."""
        return {"image": self.storage.name, **self.orphan.as_dict()}

    def copy(self, target: FileStorage) -> None:
        """The block's present sectors, each at its place; the rest of the file is a hole."""
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
    """A damaged image and its parents, open for reading. Made by `lenient.open_salvage`."""

    def __init__(
        self,
        layers: list[DoubtfulLayer],
        missing: str | None,
        notes: list[str],
        orphans: list[LocatedOrphan] | None = None,
    ) -> None:
        self._layers = layers
        self._missing = missing
        self.notes = notes
        """What is wrong with the image as a whole, in words."""
        self.orphans = orphans or []
        """Blocks of the image and its parents that no BAT entry names; they are never read."""
        self.size = layers[0].layer.size
        self.names = [one.layer.name for one in layers]
        """Paths of the image and the parents that were found."""

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[Extent | Lost]:
        """Guest bytes [start, end) in order: where each range is, or that it is lost."""
        yield from self._pieces(start, self.size if end is None else min(end, self.size), 0)

    def _pieces(self, start: int, end: int, depth: int) -> Iterator[Extent | Lost]:
        for first, stop, why in self._layers[depth].cut(start, end):
            if why is not None:
                yield Lost(first, stop - first, why)
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
                step = layer.layout.block_bytes if layer.layout is not None else _SMALLEST
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
        """(guest byte, data) of all that can be read in [start, end), and what is lost of it."""
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
        why = f"{name}: the file ends before its data does"
        try:
            data = self._layers[piece.depth].layer.storage.pread(offset, length)
        except StorageError as error:
            if length > _SMALLEST:
                half = length // 2 // SECTOR * SECTOR
                yield from self._read(start, half, piece, offset)
                yield from self._read(start + half, length - half, piece, offset + half)
                return
            data, why = b"", str(error)
        if data:
            yield start, data
        if len(data) < length:
            yield Lost(start + len(data), length - len(data), why)

    def read(self, offset: int, length: int) -> bytes:
        """Guest bytes, zeros where they are lost; fewer at the end of the disk."""
        length = max(0, min(length, self.size - offset))
        out = bytearray(length)
        for piece in self.data(offset, offset + length):
            if not isinstance(piece, Lost):
                at = piece[0] - offset
                out[at : at + len(piece[1])] = piece[1]
        return bytes(out)

    def lost(self) -> list[Lost]:
        """All ranges that metadata already gives up, in order; reads no guest data."""
        return merged(piece for piece in self.pieces() if isinstance(piece, Lost))

    def copy(
        self,
        target: FileStorage,
        start: int = 0,
        end: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[int, list[Lost]]:
        """Copies [start, end) to an empty file, where lost ranges are holes.

        Returns the bytes that were copied, and what was lost.
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
        return copied, merged(lost)

    def close(self) -> None:
        for one in self._layers:
            one.layer.close()


def merged(pieces: Iterable[Lost]) -> list[Lost]:
    """Joins neighbours that are lost for the same reason."""
    return list(join(pieces, _joined))


def _joined(one: Lost, other: Lost) -> Lost | None:
    if one.end != other.start or one.why != other.why:
        return None
    return Lost(one.start, one.length + other.length, one.why)
