"""What an open image knows of its blocks: where each is, and which of its sectors are there."""

from array import array
from collections.abc import Iterator

from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import Storage
from vhdtool.vhd import bits
from vhdtool.vhd.bits import pack_flags
from vhdtool.vhd.units import SECTOR

KEPT_BITMAPS = 4096
"""Bitmaps in memory, of one sector for blocks of 2 MiB. One more read brings a lost one back."""


class BlockMap:
    """Memory's copy of BAT and bitmaps. It changes only after the disk has.

    So a write that failed half way leaves it as it was, and the next one tries again. Readers
    need no lock: they see a bitmap before or after a change. Changes need the disk's lock.
    """

    def __init__(self, opened: BlockTables, storage: Storage) -> None:
        self.layout = opened.layout
        self.bat: array[int] = opened.bat
        self.full = opened.full
        """A byte for each block: 1 when every sector is present."""
        self._storage = storage
        self._bat_offset = opened.header.bat_offset
        self._raw = opened.raw_bat
        self._bitmaps: dict[int, bytes] = {}

    # the BAT

    def bat_sector(self, block: int) -> tuple[int, bytes]:
        """(byte offset, bytes) of the BAT's sector with `block`, as we last saw or wrote it."""
        start = block * 4 // SECTOR * SECTOR
        return self._bat_offset + start, bytes(self._raw[start : start + SECTOR])

    def bat_sector_with(self, places: dict[int, int]) -> bytes:
        """The same sector as it is to be written when blocks, all of it, get their entries."""
        raw = bytearray(self.bat_sector(min(places))[1])
        for block, entry in places.items():
            at = block * 4 % SECTOR
            raw[at : at + 4] = entry.to_bytes(4, "big")
        return bytes(raw)

    def placed(self, block: int, entry: int) -> None:
        """The BAT on disk says now that `block` is at `entry`."""
        start = block * 4
        self._raw[start : start + 4] = entry.to_bytes(4, "big")
        self.bat[block] = entry

    def same_bat(self, raw: bytes) -> bool:
        """Whether the whole BAT, read again, is what we last saw or wrote."""
        return raw == self._raw

    # bitmaps

    def bitmap(self, block: int) -> bytes | None:
        """The bitmap if it is in memory."""
        return self._bitmaps.get(block)

    def load(self, block: int, entry: int) -> bytes:
        """The bitmap from memory or the disk; call it with the disk's lock held."""
        known = self._bitmaps.get(block)
        if known is None:
            length = self.layout.bitmap_sectors * SECTOR
            known = self._storage.pread(entry * SECTOR, length).ljust(length, b"\0")
            self.keep(block, known)
        return known

    def keep(self, block: int, bitmap: bytes) -> None:
        """The bitmap on disk is now this one; forgets the oldest where there are too many."""
        if bits.all_set(bitmap, self.layout.sectors):
            # Its place in `full` says it all, in a byte.
            self.full[block] = 1
            self._bitmaps.pop(block, None)
            return
        # The batmap may have called a block full that had no place.
        self.full[block] = 0
        self._bitmaps[block] = bitmap
        if len(self._bitmaps) > KEPT_BITMAPS:
            del self._bitmaps[next(iter(self._bitmaps))]

    def batmap(self, length: int) -> bytes:
        """The batmap as the bitmaps known to be full make it, in `length` bytes."""
        return pack_flags(self.full, length)


def window(bitmap: bytes, first: int, count: int) -> Iterator[tuple[bool, int, int]]:
    """(present, sector, sectors) of the runs within [first, first + count) of a block."""
    byte = first // 8
    part = bitmap[byte : (first + count + 7) // 8]
    for present, at, sectors in bits.runs(part, first - byte * 8 + count):
        begin = max(first, at + byte * 8)
        end = at + byte * 8 + sectors
        if end > begin:
            yield present, begin, end - begin


def all_present(bitmap: bytes, first: int, count: int) -> bool:
    """Whether every sector of [first, first + count) is there."""
    if not (first | count) & 7:
        part = bitmap[first >> 3 : (first + count) >> 3]
        return part.count(0xFF) == count >> 3
    return all(present for present, _, _ in window(bitmap, first, count))
