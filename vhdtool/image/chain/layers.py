"""Reading guest data of one layer or of a whole chain."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from vhdtool.errors import CorruptImage
from vhdtool.image.metadata.read import Metadata
from vhdtool.ranges import DataRange, join
from vhdtool.storage import Storage
from vhdtool.storage.base import Closing
from vhdtool.storage.sparse import Contents, DataMap, data_map
from vhdtool.vhd.bits import reversed_bits, runs
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR, UNUSED, pad, raw_disk_size

_CACHED_BITMAPS = 1024


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of guest bytes in one layer; `depth` is the layer's number (0: the image itself).

    `offset` is the byte offset in the layer's file, or None where no layer has the range and it
    reads as zeros.
    """

    start: int
    length: int
    depth: int
    offset: int | None

    @property
    def end(self) -> int:
        return self.start + self.length


class Layer:
    """One file of a chain: a dynamic or fixed VHD, or (without metadata) a raw disk."""

    def __init__(self, storage: Storage, metadata: Metadata | None = None) -> None:
        self.storage = storage
        self.metadata = metadata
        self.size = metadata.size if metadata is not None else raw_disk_size(storage.size())
        self._bitmaps: dict[int, bytes] = {}
        self._data: DataMap | None = None
        # Both are empty for a raw disk and a fixed VHD.
        self.layout = metadata.layout if metadata is not None else None
        self._bat = metadata.bat if metadata is not None else array("I")

    @property
    def name(self) -> str:
        return self.storage.name

    @cached_property
    def contents(self) -> Contents:
        """The data and holes of its file, which must not be written meanwhile."""
        return Contents(self.storage, self.size if self.metadata is None else None)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """(start, length, file offset) of guest bytes [start, end), in order.

        The offset is None where the range is not present in this layer. Raises CorruptImage for a
        BAT entry outside the file.
        """
        stop = min(end, self.size)
        if start < stop:
            if self.layout is None:
                yield from self._flat(start, stop)
            else:
                yield from self._dynamic(start, stop, self.layout)
        if end > max(start, stop):
            yield max(start, stop), end - max(start, stop), None

    def _flat(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """The ranges of a raw or fixed disk. It has no parent, so a hole counts as not present."""
        if self._data is None:
            self._data = data_map(self.storage)
        if self._data is None:
            yield start, end - start, start
            return
        for first, stop in self._data.ranges(start, end):
            # Round up where the file ends within a sector.
            stop = min(pad(stop), end)
            if first > start:
                yield start, first - start, None
            yield first, stop - first, first
            start = stop
        if start < end:
            yield start, end - start, None

    def _dynamic(
        self, start: int, end: int, layout: BlockLayout
    ) -> Iterator[tuple[int, int, int | None]]:
        size = layout.block_bytes
        bat = self._bat
        while start < end:
            block = start // size
            stop = min(end, (block + 1) * size)
            entry = bat[block]
            if entry == UNUSED:
                while stop < end and bat[stop // size] == UNUSED:
                    stop = min(end, stop + size)
                yield start, stop - start, None
            else:
                yield from self._block(block, entry, start, stop, layout)
            start = stop

    def _block(
        self, block: int, entry: int, start: int, end: int, layout: BlockLayout
    ) -> Iterator[tuple[int, int, int | None]]:
        base = block * layout.block_bytes
        data = layout.data_offset(entry)
        for present, first, count in runs(self._bitmap(block, entry, layout), layout.sectors):
            low = max(start, base + first * SECTOR)
            high = min(end, base + (first + count) * SECTOR)
            if low < high:
                yield low, high - low, data + low - base if present else None

    def _bitmap(self, block: int, entry: int, layout: BlockLayout) -> bytes:
        cached = self._bitmaps.get(block)
        if cached is not None:
            return cached
        length = layout.bitmap_bytes
        bits = self.storage.pread(entry * SECTOR, length) if entry else b""
        if len(bits) < length:
            raise CorruptImage(
                f"{self.name}: block {block} at sector {entry} is outside the file; "
                "see `vhdtool check`"
            )
        if self.metadata is not None and self.metadata.footer.bitmaps_reversed:
            bits = reversed_bits(bits)
        if len(self._bitmaps) >= _CACHED_BITMAPS:
            self._bitmaps.clear()
        self._bitmaps[block] = bits
        return bits

    def close(self) -> None:
        self.storage.close()


class Reader(Closing):
    """Guest data of a chain: `layers` has the image first and the base last.

    As a context manager it closes the storages of the layers.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.size = layers[0].size if layers else 0

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """All extents of guest bytes [start, end), in order, without merging neighbours."""
        stop = self.size if end is None else min(end, self.size)
        yield from self._extents(start, stop, 0)

    def _extents(self, start: int, end: int, depth: int) -> Iterator[Extent]:
        for first, length, offset in self.layers[depth].ranges(start, end):
            if offset is not None:
                yield Extent(first, length, depth, offset)
            elif depth + 1 < len(self.layers):
                yield from self._extents(first, first + length, depth + 1)
            else:
                yield Extent(first, length, depth, None)

    def merged(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """As `extents`; neighbours that are adjacent in the same file are merged."""
        return join(self.extents(start, end), _joined)

    def data_ranges(self, start: int, end: int) -> Iterator[DataRange]:
        """(length, may hold data) of the parts of guest bytes [start, end), in whole sectors.

        A part without data reads as zeros: no layer has it, it is a hole in a layer's file, or it
        lies behind the end of the disk.
        """
        stop = min(end, pad(self.size))
        for extent in self.merged(start, stop):
            # Only the last range of a disk of an odd size is no whole number of sectors.
            length = pad(extent.length)
            if extent.offset is None:
                yield length, False
            else:
                yield from self.layers[extent.depth].contents.data_ranges(extent.offset, length)
        if end > max(start, stop):
            yield end - max(start, stop), False

    def read(self, offset: int, length: int) -> bytes:
        """Guest bytes; fewer past the end of the disk. Raises CorruptImage or StorageError."""
        return b"".join([self.fetch(extent) for extent in self.extents(offset, offset + length)])

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with guest bytes that lie on the disk. Raises as `read` does."""
        for extent in self.extents(offset, offset + len(view)):
            part = view[extent.start - offset : extent.end - offset]
            if extent.offset is None:
                part[:] = bytes(len(part))
            else:
                self.fetch_into(extent, part)

    def fetch(self, extent: Extent) -> bytes:
        """The bytes of one extent. Raises CorruptImage where the file ends within it."""
        if extent.offset is None:
            return bytes(extent.length)
        layer = self.layers[extent.depth]
        data = layer.storage.pread(extent.offset, extent.length)
        if len(data) == extent.length:
            return data
        if layer.metadata is None and extent.start + len(data) > layer.size - SECTOR:
            return data.ljust(extent.length, b"\0")
        raise CorruptImage(
            f"{layer.name}: the file ends within guest bytes {extent.start} to {extent.end}; "
            "see `vhdtool check`"
        )

    def fetch_into(self, extent: Extent, view: memoryview) -> None:
        """Read an extent that has a file offset into `view`. Raises as `fetch` does."""
        assert extent.offset is not None
        storage = self.layers[extent.depth].storage
        if storage.readinto(extent.offset, view) < extent.length:
            view[:] = self.fetch(extent)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()


def _joined(one: Extent, other: Extent) -> Extent | None:
    if one.offset is None or other.offset is None:
        joins = one.offset is other.offset
    else:
        joins = one.depth == other.depth and one.offset + one.length == other.offset
    return Extent(one.start, one.length + other.length, one.depth, one.offset) if joins else None
