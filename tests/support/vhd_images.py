"""Images built field by field for tests, without the code that writes images."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.tapdisk2 import Tapdisk2
from vhdtool.storage import MemoryStorage, Storage
from vhdtool.vhd.bat import pack_bat
from vhdtool.vhd.batmap import batmap_checksum, batmap_header_for
from vhdtool.vhd.bits import set_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DYNAMIC, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

UUID_ONE = UUID("11111111-2222-3333-4444-555555555555")


class Picture:
    """An image whose parts a test may damage before `draw` puts them into a storage.

    Blocks stand in `blocks` as {block: sector}; `bits` maps a block to its bitmap.
    """

    def __init__(
        self,
        size: int = 64 << 20,
        block_bytes: int = 2 << 20,
        batmap: bool = True,
        disk_type: int = DYNAMIC,
    ) -> None:
        self.layout = BlockLayout(block_bytes)
        self.header = Header(self.layout.blocks_for(size), block_bytes)
        self.footer = Footer(
            size,
            disk_type,
            Geometry.for_size(size),
            UUID_ONE,
            timestamp=1,
            original_size=size,
            data_offset=SECTOR,
            creator_version=0x00010003 if batmap else 0x00010001,
        )
        self.copy: Footer | None = self.footer
        self.has_batmap = batmap
        self.batmap_bits = bytearray(-(-self.header.max_entries // 8))
        self.blocks: dict[int, int] = {}
        self.bits: dict[int, bytearray] = {}
        self.data: dict[int, bytes] = {}
        self.lost: dict[int, int] = {}
        fresh = batmap_header_for(self.header)
        self.end = (
            fresh.offset // SECTOR + fresh.sectors if batmap else self.header.bat_end // SECTOR
        )

    def add(self, block: int, *runs: tuple[int, int], fill: int = 0x41, gap: int = 0) -> int:
        """Places a block behind the last one; `runs` are its present sectors (default all)."""
        sector = self.layout.next_entry(self.end + gap)
        self.blocks[block] = sector
        bitmap = bytearray(self.layout.bitmap_bytes)
        for first, count in runs or ((0, self.layout.sectors),):
            set_bits(bitmap, first, count)
        if not runs:
            set_bits(self.batmap_bits, block, 1)
        self.bits[block] = bitmap
        self.data[block] = bytes([fill]) * self.layout.block_bytes
        self.end = self.layout.end_sector(sector)
        return sector

    def lose(self, block: int) -> int:
        """The BAT entry goes; bitmap and data stay where they are. Returns the entry."""
        self.lost[block] = self.blocks.pop(block)
        return self.lost[block]

    def draw(self, footer: bool = True) -> MemoryStorage:
        """The image; `footer` says whether it was closed."""
        disk = MemoryStorage(name="picture.vhd")
        if self.copy is not None:
            disk.pwrite(0, self.copy.pack())
        disk.pwrite(SECTOR, self.header.pack())
        table = [self.blocks.get(block, UNUSED) for block in range(self.header.max_entries)]
        from array import array

        disk.pwrite(self.header.bat_offset, pack_bat(array("I", table)))
        if self.has_batmap:
            fresh = batmap_header_for(self.header)
            bits = bytes(self.batmap_bits).ljust(fresh.sectors * SECTOR, b"\0")
            check = batmap_checksum(bits, self.footer.current_size)
            disk.pwrite(self.header.bat_end, replace(fresh, checksum=check).pack() + bits)
        for block, sector in {**self.blocks, **self.lost}.items():
            if block in self.bits:
                disk.pwrite(self.layout.data_offset(sector), self.data[block])
                disk.pwrite(sector * SECTOR, bytes(self.bits[block]))
        if footer:
            disk.pwrite(self.end * SECTOR, self.footer.pack())
        return disk


def tapdisk2_disk(
    storage: Storage, *, kill_footer: bool = False, preallocate: bool = True, **options: Any
) -> DynamicDisk:
    """A disk that is written as tapdisk2 writes it."""
    return DynamicDisk(storage, policy=Tapdisk2(kill_footer, preallocate), **options)
