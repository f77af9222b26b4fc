"""Reading a damaged image: all that can still be trusted, and a list of the rest."""

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from vhdtool.errors import CorruptImage, VhdtoolError
from vhdtool.image.check import check
from vhdtool.image.checks.ends import MAX_ENTRIES
from vhdtool.image.export import CHUNK, Progress
from vhdtool.image.metadata import HEADER_PLACE, Ends, Metadata, read_ends
from vhdtool.image.parents import find_parent
from vhdtool.image.reader import Extent, Layer
from vhdtool.image.repair import MENDED
from vhdtool.storage import FileStorage, Storage, StorageError
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, DYNAMIC, FIXED, Footer
from vhdtool.vhd.header import NO_UUID, Header
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.units import SECTOR

_FINDINGS = 200_000
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
class _Doubted:
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


class Salvage:
    """A damaged image and its parents, open for reading. Made by `open_salvage`."""

    def __init__(self, layers: list[_Doubted], missing: str | None, notes: list[str]) -> None:
        self._layers = layers
        self._missing = missing
        self.notes = notes
        """What is wrong with the image as a whole, in words."""
        self.size = layers[0].layer.size

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
        return copied, merged(iter(lost))

    def close(self) -> None:
        for one in self._layers:
            one.layer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def merged(pieces: Iterator[Lost]) -> list[Lost]:
    """Neighbours that are lost for the same reason become one."""
    result: list[Lost] = []
    for piece in pieces:
        last = result[-1] if result else None
        if last is not None and last.end == piece.start and last.why == piece.why:
            result[-1] = Lost(last.start, last.length + piece.length, last.why)
        else:
            result.append(piece)
    return result


def open_salvage(path: str | os.PathLike[str]) -> Salvage:
    """Opens an image that other readers may refuse, with the parents that can be found.

    Raises NotAVhd, StorageError, or CorruptImage when nothing says where the blocks are.
    """
    layers: list[_Doubted] = []
    notes: list[str] = []
    missing: str | None = None
    current, raw = os.fspath(path), False
    seen = set()
    try:
        while True:
            storage = FileStorage(current)
            status = os.fstat(storage.fileno())
            layers.append(_Doubted(Layer(storage)))
            if (status.st_dev, status.st_ino) in seen:
                layers.pop().layer.close()
                missing = f"{current}: the chain of parents comes back to this file"
                break
            seen.add((status.st_dev, status.st_ino))
            if raw:
                break
            metadata = _metadata(storage, notes)
            layers[-1] = _doubted(storage, metadata, notes)
            header = metadata.header
            if metadata.footer.disk_type != DIFFERENCING or header is None:
                break
            try:
                current = find_parent(current, storage, header)
            except VhdtoolError as error:
                missing = str(error)
                break
            raw = header.parent_uuid == NO_UUID
    except VhdtoolError as error:
        # What the image itself has is worth more than a parent that cannot be used.
        if len(layers) < 2:
            for one in layers:
                one.layer.close()
            raise
        layers.pop().layer.close()
        missing = str(error)
    return Salvage(layers, missing, notes)


def _metadata(storage: Storage, notes: list[str]) -> Metadata:
    """As `read_metadata`, but content with less."""
    ends = read_ends(storage)
    footer = ends.best
    if footer is not None and footer.disk_type == FIXED:
        return Metadata(footer, ends)
    if footer is None:
        notes.append(f"{storage.name}: no footer is whole; the size is what the header allows")
    header = _header(storage, footer or ends.end or ends.copy, notes)
    if footer is None:
        footer = _footer(ends, header)
    raw = storage.pread(header.bat_offset, 4 * header.max_entries)
    # Entries that the file does not have are zero, which no block can be at.
    bat: array[int] = unpack_bat(raw.ljust(4 * header.max_entries, b"\0"), header.max_entries)
    return Metadata(footer, ends, header, bat, None, BlockLayout(header.block_bytes))


def _header(storage: Storage, footer: Footer | None, notes: list[str]) -> Header:
    places = [HEADER_PLACE] if footer is None else [footer.data_offset, HEADER_PLACE]
    found = None
    for place in places:
        raw = storage.pread(place, HEADER_SIZE) if place < storage.size() else b""
        if len(raw) < HEADER_SIZE:
            continue
        header = Header.unpack(raw)
        fits = header.bat_offset % SECTOR == 0 and header.bat_offset < storage.size()
        usable = header.has_cookie and header.block_size_valid and fits
        if usable and header.max_entries <= MAX_ENTRIES and (found is None or header.valid):
            found = header
    if found is None:
        raise CorruptImage(
            f"{storage.name}: nothing is left that says where its blocks are: no header"
        )
    if not found.checksum_valid:
        notes.append(f"{storage.name}: the header's checksum is wrong; all data is in doubt")
    return found


def _footer(ends: Ends, header: Header) -> Footer:
    most = header.max_entries * header.block_bytes
    hint = ends.end or ends.copy
    size = hint.current_size if hint is not None and 0 < hint.current_size <= most else most
    is_child = header.parent_uuid != NO_UUID or any(one.used for one in header.locators)
    return Footer(size, DIFFERENCING if is_child else DYNAMIC)


def _doubted(storage: Storage, metadata: Metadata, notes: list[str]) -> _Doubted:
    report = check(storage, "unclean", limit=_FINDINGS)
    doubts = []
    for one in report.findings:
        if one.severity != "corrupt" or one.code in MENDED:
            continue
        if one.sectors is None:
            notes.append(f"{storage.name}: {one.message}")
            continue
        first, count = one.sectors
        doubts.append((first * SECTOR, (first + count) * SECTOR, f"{one.code}: {one.message}"))
    layout = metadata.layout
    if layout is not None and len(metadata.bat) * layout.block_bytes < metadata.size:
        reach = len(metadata.bat) * layout.block_bytes
        doubts.append((reach, metadata.size, "bat-too-small: the BAT does not reach so far"))
    return _Doubted(Layer(storage, metadata), _disjoint(doubts))


def _disjoint(doubts: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    result: list[tuple[int, int, str]] = []
    for first, stop, why in sorted(doubts):
        start = max(first, result[-1][1]) if result else first
        if start < stop:
            result.append((start, stop, why))
    return result
