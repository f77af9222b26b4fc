"""The allocated blocks of an image in file order."""

from array import array

from vhdtool.storage import Storage
from vhdtool.vhd.bits import reversed_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR, UNUSED

BLOCK_BITS = 32
BLOCK_MASK = (1 << BLOCK_BITS) - 1


class Placement:
    """Allocated blocks in file order. `sorted_keys` are BAT entry << 32 | block.

    Entries that cannot be read at all are listed apart: `zeroed` has the blocks whose entry is
    zero, `outside` those whose entry lies past the end of the file or wraps around 32 bits.
    """

    def __init__(
        self,
        bat: "array[int]",
        layout: BlockLayout,
        bat_offset: int,
        file_size: int,
        bitmaps_reversed: bool = False,
    ) -> None:
        self.bat = bat
        self.layout = layout
        self.bitmaps_reversed = bitmaps_reversed
        self.bat_offset = bat_offset
        self.file_sectors = file_size // SECTOR
        last = self.file_sectors - layout.bitmap_sectors
        self.zeroed: list[int] = []
        self.outside: list[int] = []
        keys = array("Q")
        highest = 0
        ordered = True
        for block, entry in enumerate(bat):
            if entry == UNUSED:
                continue
            if entry == 0:
                self.zeroed.append(block)
            elif entry > last:
                self.outside.append(block)
            else:
                keys.append(entry << BLOCK_BITS | block)
                ordered = ordered and entry >= highest
                highest = entry
        # An array has eight bytes a block; only a BAT that is out of order is sorted as a list.
        self.sorted_keys = keys if ordered else array("Q", sorted(keys))

    def read_bitmap(self, storage: Storage, entry: int) -> bytes:
        """The sector bitmap of the block at sector `entry`; cut off where the file ends."""
        raw = storage.pread(entry * SECTOR, self.layout.bitmap_bytes)
        return reversed_bits(raw) if self.bitmaps_reversed else raw

    def guest_sectors(self, block: int, entry: int, first: int, end: int) -> tuple[int, int] | None:
        """Guest sectors (first, count) of a block that lie in file sectors [first, end)."""
        data = self.layout.data_sector(entry)
        start = max(first - data, 0)
        stop = min(end - data, self.layout.sectors)
        if first < data < end:
            # The range has the end of the bitmap, without which no sector can be trusted.
            start, stop = 0, self.layout.sectors
        return (block * self.layout.sectors + start, stop - start) if stop > start else None
