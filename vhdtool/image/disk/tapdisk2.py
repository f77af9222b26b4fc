"""tapdisk2's way of writing an image, write by write: it trusts its memory, and checks no lease.

Facts: blktap's drivers/block-vhd.c and vhd/lib/libvhd.c, checked on a running tapdisk.
"""

from dataclasses import dataclass, replace

from vhdtool.image.disk.allocator import Allocator
from vhdtool.image.disk.base import Hooks
from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import Storage
from vhdtool.vhd import bits
from vhdtool.vhd.units import KILLED, SECTOR


@dataclass(frozen=True)
class Tapdisk2:
    """The write policy that reproduces split brains.

    `kill_footer`: the image is opened again after a pause. `preallocate`: as on a local file; on
    NFS and block devices tapdisk2 clears only a new block's bitmap.
    """

    kill_footer: bool = False
    preallocate: bool = True
    pads_short = True
    trims = False

    def hooks(self, hooks: Hooks) -> Hooks:
        return replace(hooks, may_write_metadata=lambda: None)

    def data_end(self, storage: Storage, tables: BlockTables) -> int:
        return tables.end

    def begin(self, allocator: Allocator, tables: BlockTables, unclean: bool) -> bool:
        """Accept any image."""
        if self.kill_footer:
            # Unread: in an image without a footer this overwrites guest data.
            allocator.writer.write(allocator.storage.size() - SECTOR, KILLED)
        return self.kill_footer

    def allocate(self, allocator: Allocator, block: int, first: int, data: memoryview) -> bool:
        storage, writer, layout = allocator.storage, allocator.writer, allocator.layout
        end = allocator.end
        entry = allocator.next_entry(end)
        preallocate = self.preallocate and not storage.is_block_device
        sectors = layout.total_sectors if preallocate else layout.bitmap_sectors
        storage.zero(end * SECTOR, (entry + sectors - end) * SECTOR)
        bitmap = bytearray(layout.bitmap_sectors * SECTOR)
        bits.set_bits(bitmap, first, len(data) // SECTOR)
        storage.pwrite(layout.data_offset(entry) + first * SECTOR, data)
        allocator.write_entries({block: entry})
        writer.write_bitmap(entry, bytes(bitmap), 0, layout.bitmap_sectors)
        allocator.allocated({block: entry}, bytes(bitmap))
        return True

    def finish(self, allocator: Allocator) -> None:
        """Write the footer, truncate, write copy and batmap; flush once, at the end."""
        storage, writer = allocator.storage, allocator.writer
        raw = writer.footer.pack()
        offset = allocator.footer_offset()
        storage.pwrite(offset, raw)
        writer.wrote()
        if not storage.is_block_device:
            storage.truncate(offset + SECTOR)
            writer.truncated_to = offset + SECTOR
        storage.pwrite(0, raw)
        writer.write_batmap(allocator.blocks, always=True)
        storage.flush()
        writer.wrote()
