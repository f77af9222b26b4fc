"""BAT and sector bitmaps in memory: where each block is, and which sectors are present."""

import threading
from array import array
from collections.abc import Iterator

from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import Storage
from vhdtool.vhd import bits
from vhdtool.vhd.bits import pack_flags
from vhdtool.vhd.units import SECTOR, UNUSED

CACHED_BITMAPS = 4096
"""Bitmaps in memory, each of one sector for blocks of 2 MiB. Others are read when needed."""


class BlockMap:
    """BAT and bitmaps as this process last read or wrote them.

    Memory changes after the disk has, so a write that fails half way leaves it as it was, and can
    be tried again. Readers need no lock: they see a bitmap before or after a change. Changes need
    `lock`.
    """

    def __init__(self, tables: BlockTables, storage: Storage) -> None:
        self.lock = threading.RLock()
        self.layout = tables.layout
        self.bat: array[int] = tables.bat
        self.full = tables.full
        """A byte for each block: 1 when every sector is present."""
        self.block_bytes = tables.layout.block_bytes
        self.bitmap_bytes = tables.layout.bitmap_sectors * SECTOR
        self.whole_blocks = tables.footer.current_size // self.block_bytes
        """Blocks that lie wholly within the disk."""
        self._storage = storage
        self._bat_offset = tables.header.bat_offset
        self._raw_bat = tables.raw_bat
        self._bitmaps: dict[int, bytes] = {}

    def file_offset(self, offset: int, length: int) -> int | None:
        """The file offset of a request within one full block; None for any other request."""
        block, within = divmod(offset, self.block_bytes)
        if offset < 0 or within + length > self.block_bytes or block >= self.whole_blocks:
            return None
        # The entry first: a new block's flag is set before its entry, and a batmap may be wrong.
        entry = self.bat[block]
        if entry == UNUSED or not self.full[block]:
            return None
        return entry * SECTOR + self.bitmap_bytes + within

    # the BAT

    def bat_sector(self, block: int) -> tuple[int, bytes]:
        """(byte offset, bytes) of the BAT's sector with `block`, as last read or written."""
        start = block * 4 // SECTOR * SECTOR
        return self._bat_offset + start, bytes(self._raw_bat[start : start + SECTOR])

    def bat_sector_with(self, entries: dict[int, int]) -> bytes:
        """The same sector with the BAT entries of new blocks, which all lie in it."""
        raw = bytearray(self.bat_sector(min(entries))[1])
        for block, entry in entries.items():
            at = block * 4 % SECTOR
            raw[at : at + 4] = entry.to_bytes(4, "big")
        return bytes(raw)

    def set_entry(self, block: int, entry: int) -> None:
        """Note that the BAT on disk has `entry` for `block`."""
        start = block * 4
        self._raw_bat[start : start + 4] = entry.to_bytes(4, "big")
        self.bat[block] = entry

    def same_bat(self, raw: bytes) -> bool:
        """Whether the whole BAT, read again, is as last read or written."""
        return raw == self._raw_bat

    # bitmaps

    def bitmap(self, block: int, entry: int) -> bytes | None:
        """The block's bitmap from memory or the disk; None when every sector is present."""
        if self.full[block]:
            return None
        bitmap = self._bitmaps.get(block)
        if bitmap is None:
            with self.lock:
                bitmap = self.load_bitmap(block, entry)
        return bitmap

    def load_bitmap(self, block: int, entry: int) -> bytes:
        """The bitmap from memory or the disk, of a full block too. Call it with the lock held."""
        bitmap = self._bitmaps.get(block)
        if bitmap is None:
            length = self.bitmap_bytes
            bitmap = self._storage.pread(entry * SECTOR, length).ljust(length, b"\0")
            self.set_bitmap(block, bitmap)
        return bitmap

    def set_bitmap(self, block: int, bitmap: bytes) -> None:
        """Note the bitmap on disk; drop the oldest one when there are too many."""
        if bits.all_set(bitmap, self.layout.sectors):
            # Its flag says the same in a byte.
            self.full[block] = 1
            self._bitmaps.pop(block, None)
            return
        # The batmap may have called a block full that was not allocated.
        self.full[block] = 0
        self._bitmaps[block] = bitmap
        if len(self._bitmaps) > CACHED_BITMAPS:
            del self._bitmaps[next(iter(self._bitmaps))]

    def cached_bitmaps(self) -> int:
        """How many bitmaps are in memory."""
        return len(self._bitmaps)

    def batmap(self, length: int) -> bytes:
        """The batmap in `length` bytes: the blocks that are known to be full."""
        return pack_flags(self.full, length)


def runs_within(bitmap: bytes, first: int, count: int) -> Iterator[tuple[bool, int, int]]:
    """(present, sector, sectors) of the runs within [first, first + count) of a block."""
    byte = first // 8
    part = bitmap[byte : (first + count + 7) // 8]
    for present, at, sectors in bits.runs(part, first - byte * 8 + count):
        begin = max(first, at + byte * 8)
        end = at + byte * 8 + sectors
        if end > begin:
            yield present, begin, end - begin


def all_present(bitmap: bytes, first: int, count: int) -> bool:
    """Whether every sector of [first, first + count) is present."""
    if not (first | count) & 7:
        part = bitmap[first >> 3 : (first + count) >> 3]
        return part.count(0xFF) == count >> 3
    return all(present for present, _, _ in runs_within(bitmap, first, count))
