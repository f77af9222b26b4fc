"""Writes the metadata of an open image: calls the owner's hook first, and notes the time."""

from dataclasses import replace

from vhdtool.image.disk.base import Hooks
from vhdtool.image.disk.block_map import BlockMap
from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import batmap_bytes, batmap_checksum
from vhdtool.vhd.units import SECTOR


class MetadataWriter:
    """BAT entries, bitmaps, batmap and footer. All raise StorageError, or what the hook raises."""

    def __init__(self, storage: Storage, tables: BlockTables, hooks: Hooks) -> None:
        self.storage = storage
        self.footer = tables.footer
        self.hooks = hooks
        self.last_time: float | None = None
        """When this open last wrote metadata: it shows how near a hand-over was to trouble."""
        self.truncated_to: int | None = None
        self._header = tables.header
        self._batmap = tables.batmap

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes of metadata, if they may be written."""
        self.hooks.may_write_metadata()
        self.storage.pwrite(offset, data)
        self.wrote()

    def wrote(self) -> None:
        """Note the time of a metadata write."""
        self.last_time = self.hooks.clock()

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, if it may be cut."""
        self.hooks.may_write_metadata()
        self.storage.truncate(size)
        self.wrote()

    def read_bat(self) -> bytes:
        """The whole BAT as it is on the disk now."""
        return self.storage.pread(self._header.bat_offset, self._header.bat_bytes)

    def write_bitmap(self, entry: int, bitmap: bytes, begin: int, end: int) -> None:
        """Write sectors [begin, end) of the bitmap of the block at `entry`."""
        self.write((entry + begin) * SECTOR, bitmap[begin * SECTOR : end * SECTOR])

    def write_batmap(self, blocks: BlockMap, always: bool = False) -> None:
        """Write the batmap where the image has one and it has changed, or `always`.

        The map comes before its header: until the checksum fits, the map is not believed.
        """
        batmap = self._batmap
        if batmap is None:
            return
        length = min(batmap_bytes(self._header.max_entries), batmap.sectors * SECTOR)
        bits = blocks.batmap(length)
        check = batmap_checksum(bits, self.footer.current_size, batmap.version)
        same = check == batmap.checksum and self.storage.pread(batmap.offset, length) == bits
        if same and not always:
            return
        self.write(batmap.offset, bits)
        self.write(self._header.bat_end, replace(batmap, checksum=check).pack())

    def write_footer(self, offset: int) -> None:
        """Write the footer at byte `offset` and cut the file behind it; durable on return."""
        self.write(offset, self.footer.pack())
        self.hooks.reached("footer-written")
        end = offset + SECTOR
        if self.storage.size() != end:
            self.truncate(end)
            self.hooks.reached("file-truncated")
        self.truncated_to = end
        self.storage.flush()
