"""Arithmetic of blocks: a bitmap, padded to whole sectors, then the data."""

from dataclasses import dataclass

from vhdtool.vhd.units import SECTOR, UNUSED, pad

ALIGN = 8
"""Sectors to which blktap aligns a block's data: 4 KiB."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The shape of a block of `block_bytes`, a power of two of at least a sector.

    >>> two_mib = BlockLayout(2 << 20)
    >>> two_mib.sectors, two_mib.bitmap_sectors, two_mib.total_sectors, two_mib.stride
    (4096, 1, 4097, 4104)
    >>> two_mib.next_entry(8)
    15
    """

    block_bytes: int

    @property
    def sectors(self) -> int:
        """Sectors of guest data in a block."""
        return self.block_bytes // SECTOR

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of the bitmap that mean something: one bit a sector."""
        return -(-self.sectors // 8)

    @property
    def bitmap_sectors(self) -> int:
        """Sectors that the bitmap takes in the file."""
        return pad(self.bitmap_bytes) // SECTOR

    @property
    def total_sectors(self) -> int:
        """Bitmap and data together, without any gap for alignment."""
        return self.bitmap_sectors + self.sectors

    @property
    def stride(self) -> int:
        """Sectors from one block to the next when blocks are placed without waste by blktap."""
        return pad(self.bitmap_sectors, ALIGN) + pad(self.sectors, ALIGN)

    def next_entry(self, end: int, align: int = ALIGN) -> int:
        """The BAT entry of a new block where sectors below `end` are taken.

        The bitmap goes so far behind `end` that the data starts on a multiple of `align`.
        """
        return pad(end + self.bitmap_sectors, align) - self.bitmap_sectors

    def data_sector(self, entry: int) -> int:
        """First sector of the data of the block at BAT entry `entry`."""
        return entry + self.bitmap_sectors

    def data_offset(self, entry: int) -> int:
        """First byte of the data of the block at BAT entry `entry`."""
        return (entry + self.bitmap_sectors) * SECTOR

    def end_sector(self, entry: int) -> int:
        """The sector behind the block at BAT entry `entry`."""
        return entry + self.total_sectors

    def blocks_for(self, size: int) -> int:
        """Blocks that a disk of `size` bytes needs."""
        return -(-size // self.block_bytes)

    def fits(self, entry: int) -> bool:
        """Whether a BAT entry of 32 bits can hold `entry`."""
        return 0 <= entry < UNUSED
