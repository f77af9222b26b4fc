"""A dynamic image treated as tapdisk2 treats it, write by write: it trusts its memory.

Facts: blktap's drivers/block-vhd.c and vhd/lib/libvhd.c, checked on a running tapdisk.
"""

from dataclasses import replace

from vhdtool.image.disk.block_reader import FindParent
from vhdtool.image.disk.closing import write_batmap
from vhdtool.image.disk.dynamic import DynamicDisk, Parent
from vhdtool.image.disk.hooks import Hooks
from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import Storage
from vhdtool.vhd import bits
from vhdtool.vhd.units import KILLED, SECTOR


class FaithfulDisk(DynamicDisk):
    """As DynamicDisk, without its rules.

    `kill_footer`: opened again after a pause. `preallocate`: what tapdisk does on a local file;
    on NFS and block devices it writes only a new block's bitmap and lets the data find its place.
    """

    faithful = True

    def __init__(
        self,
        storage: Storage,
        *,
        kill_footer: bool = False,
        preallocate: bool = True,
        hooks: Hooks | None = None,
        parent: Parent | FindParent | None = None,
    ) -> None:
        # It asks nobody.
        hooks = replace(hooks or Hooks(), may_write_metadata=lambda: None)
        super().__init__(storage, unclean=True, hooks=hooks, parent=parent)
        self.preallocate = preallocate and not self._block_device
        if kill_footer:
            # Without a look at what it overwrites: on an image without a footer, guest data.
            self.storage.pwrite(self.storage.size() - SECTOR, KILLED)
            self.wrote_metadata()
            self._dirty = True

    def _accept(self, opened: BlockTables, unclean: bool) -> None:
        """tapdisk opens it as it is."""

    def _short(self, offset: int, data: bytes, count: int) -> bytes:
        return data.ljust(count, b"\0")

    def _allocate(self, block: int, first: int, data: memoryview) -> bool:
        layout = self.layout
        entry = self._place(self._end)
        gap = entry - self._end
        sectors = layout.total_sectors if self.preallocate else layout.bitmap_sectors
        self.storage.zero(self._end * SECTOR, (gap + sectors) * SECTOR)
        bitmap = bytearray(layout.bitmap_sectors * SECTOR)
        bits.set_bits(bitmap, first, len(data) // SECTOR)
        self.storage.pwrite(layout.data_offset(entry) + first * SECTOR, data)
        self._write_bat_entries({block: entry})
        self._write_bitmap(entry, bytes(bitmap), 0, layout.bitmap_sectors)
        self._allocated({block: entry}, bytes(bitmap))
        return True

    def trim(self, offset: int, length: int) -> None:
        """tapdisk2 frees nothing of a VHD."""

    def _end_file(self) -> None:
        """Footer at its own idea of the end, truncate, copy, batmap; one fsync at the end."""
        storage, raw = self.storage, self.footer.pack()
        place = self._footer_place()
        storage.pwrite(place, raw)
        self.wrote_metadata()
        if not self._block_device:
            storage.truncate(place + SECTOR)
            self.truncated_to = place + SECTOR
        storage.pwrite(0, raw)
        write_batmap(self, self._opened.batmap, ask=lambda: None)
        storage.flush()
        self.wrote_metadata()
