"""The reading half of an open image with blocks."""

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from vhdtool.errors import CorruptImage, UnsupportedImage
from vhdtool.image.disk.block_map import BlockMap, window
from vhdtool.image.metadata.read import read_block_tables
from vhdtool.ranges import DataRange, merge_data
from vhdtool.storage import Storage
from vhdtool.storage.sparse import Contents
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED


class Parent(Protocol):
    """What lies below a differencing disk; bytes at byte offsets."""

    def read(self, offset: int, length: int) -> bytes: ...

    def held(self, start: int, end: int) -> Iterator[DataRange]:
        """All of the guest bytes [start, end), also behind the disk's end, in whole sectors."""


FindParent = Callable[[Header], Parent]
"""Opens the parent that a differencing disk's header names."""


class BlockReader:
    """Metadata in memory, data from the storage. Offsets and lengths are bytes.

    `size` is the disk's, `bat` the table. Raises NotAVhd, CorruptImage, UnsupportedImage.
    """

    def __init__(self, storage: Storage, parent: Parent | FindParent | None = None) -> None:
        self.storage = storage
        self._lock = threading.RLock()
        self._opened = opened = read_block_tables(storage)
        self.footer, self.header, self.layout = opened.footer, opened.header, opened.layout
        self.size = opened.footer.current_size
        self._map = BlockMap(opened, storage)
        self.bat = self._map.bat
        self._full = self._map.full
        self._block_bytes = self.layout.block_bytes
        self._bitmap_bytes = self.layout.bitmap_sectors * SECTOR
        self._whole_blocks = self.size // self._block_bytes
        self.parent = self._find(parent)

    def _find(self, parent: Parent | FindParent | None) -> Parent | None:
        if self.footer.disk_type != DIFFERENCING:
            return None
        if parent is None:
            raise UnsupportedImage(
                f"{self.storage.name}: a differencing disk needs its parent opened first"
            )
        return parent(self.header) if callable(parent) else parent

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; what is not allocated comes from the parent, or is zeros.

        Raises CorruptImage where the file has lost data that the metadata promises.
        """
        at = self._straight(offset, length)
        if at is not None:
            return self._present(at, length)
        parts = [
            self._read_block(block, within, count)
            for block, within, count in self._split(offset, length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _straight(self, offset: int, length: int) -> int | None:
        """Where in the file the request lies: the usual one, of one block that is all there."""
        block, within = divmod(offset, self._block_bytes)
        if offset < 0 or within + length > self._block_bytes or block >= self._whole_blocks:
            return None
        # The place first: a new block's flag is there before it, and a batmap may lie.
        entry = self.bat[block]
        if entry == UNUSED or not self._full[block]:
            return None
        return entry * SECTOR + self._bitmap_bytes + within

    def _split(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(block, byte offset within it, bytes) for each block that a request touches."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{self.storage.name}: {length} bytes at {offset} pass the disk's end")
        while length:
            block, within = divmod(offset, self.layout.block_bytes)
            count = min(length, self.layout.block_bytes - within)
            yield block, within, count
            offset += count
            length -= count

    def _read_block(self, block: int, within: int, count: int) -> bytes:
        entry = self.bat[block]
        if entry == UNUSED:
            return self._below(block, within, count)
        start = self.layout.data_offset(entry)
        bitmap = self._bitmap(block, entry)
        if bitmap is None:
            return self._present(start + within, count)
        out = []
        for present, begin, size in _byte_runs(bitmap, within, count):
            if present:
                out.append(self._present(start + begin, size))
            else:
                out.append(self._below(block, begin, size))
        return out[0] if len(out) == 1 else b"".join(out)

    def _present(self, offset: int, count: int) -> bytes:
        """Bytes of the file that the metadata promises."""
        data = self.storage.pread(offset, count)
        return data if len(data) == count else self._short(offset, data, count)

    def _short(self, offset: int, data: bytes, count: int) -> bytes:
        raise CorruptImage(
            f"{self.storage.name}: data at byte {offset} is behind the end of the file: its tail "
            "was cut off"
        )

    def _below(self, block: int, within: int, count: int) -> bytes:
        if self.parent is None:
            return bytes(count)
        start = block * self.layout.block_bytes + within
        # A parent may be smaller than its child.
        return self.parent.read(start, count).ljust(count, b"\0")

    def _bitmap(self, block: int, entry: int) -> bytes | None:
        """The block's bitmap from memory or the disk; None when every sector is present."""
        if self._map.full[block]:
            return None
        bitmap = self._map.bitmap(block)
        if bitmap is None:
            with self._lock:
                bitmap = self._map.load(block, entry)
        return bitmap

    def extents(self, offset: int, length: int, most: int = 1 << 14) -> list[tuple[int, bool]]:
        """(bytes, may hold data) of the first `most` ranges from `offset`, neighbours joined.

        What holds no data reads as zeros: no layer has it, or it is a hole in a layer's file.
        """
        return merge_data(self._held(offset, length), most)

    def _held(self, offset: int, length: int) -> Iterator[DataRange]:
        contents = Contents(self.storage)
        absent = position = offset
        for block, within, count in self._split(offset, length):
            for size, place in self._block_places(block, within, count):
                if place is not None:
                    yield from self._held_below(absent, position)
                    yield from contents.held(place, size)
                    absent = position + size
                position += size
        yield from self._held_below(absent, position)

    def _held_below(self, start: int, end: int) -> Iterator[DataRange]:
        if self.parent is not None:
            yield from self.parent.held(start, end)
        elif start < end:
            yield end - start, False

    def _block_places(
        self, block: int, within: int, count: int
    ) -> Iterator[tuple[int, int | None]]:
        """(bytes, where in the file or None) of what is present here and what is not."""
        entry = self.bat[block]
        if entry == UNUSED:
            yield count, None
            return
        start = self.layout.data_offset(entry)
        bitmap = self._bitmap(block, entry)
        if bitmap is None:
            yield count, start + within
            return
        for present, begin, size in _byte_runs(bitmap, within, count):
            yield size, start + begin if present else None


def _byte_runs(bitmap: bytes, within: int, count: int) -> Iterator[tuple[bool, int, int]]:
    """(present, byte offset in the block, bytes) of the runs in [within, within + count)."""
    first, last = within // SECTOR, (within + count - 1) // SECTOR
    for present, at, sectors in window(bitmap, first, last - first + 1):
        begin = max(within, at * SECTOR)
        yield present, begin, min(within + count, (at + sectors) * SECTOR) - begin
