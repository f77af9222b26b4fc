"""Allocates blocks of an open image: a durable bitmap first, the BAT entry after it.

The data comes last. Until then the block reads as it did before: as zeros, or as the parent.
"""

import contextlib
import errno

from vhdtool.errors import SplitBrain
from vhdtool.image.disk.block_map import BlockMap
from vhdtool.image.disk.metadata_writer import MetadataWriter
from vhdtool.image.disk.preallocation import Preallocation
from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import StorageError
from vhdtool.vhd import bits
from vhdtool.vhd.bat import ENTRIES_PER_SECTOR
from vhdtool.vhd.units import SECTOR, UNUSED

MOST_AT_ONCE = 4
"""Blocks that one BAT write allocates while a disk is filled in order."""
Entries = dict[int, int]
"""Block -> BAT entry."""


class Allocator:
    """Knows where the data ends, and allocates behind it. Call it with the map's lock held.

    `full`: a new block counts as full at once, as its absent sectors are zeros in the file too.
    """

    def __init__(
        self, writer: MetadataWriter, blocks: BlockMap, tables: BlockTables, end: int, full: bool
    ) -> None:
        self.storage = writer.storage
        self.writer = writer
        self.blocks = blocks
        self.layout = blocks.layout
        self.end = end
        """The sector behind the last block."""
        self.full = full
        self._opened_size = tables.file_size
        self._unused = len(tables.bat) - len(tables.used)
        self._new_bitmap = self._bitmap_of_new()
        self._preallocation = Preallocation(writer, self.layout, self._new_bitmap)
        self._file_size: int | None = tables.file_size
        """As this process left it; None when it cannot be known."""
        self._unsettled: Entries = {}
        """Entries of a BAT write that failed, and may have reached the disk."""
        self._batch = 1
        self._expected = -1

    def _bitmap_of_new(self) -> bytes:
        bitmap = bytearray(self.blocks.bitmap_bytes)
        if self.full:
            bits.set_bits(bitmap, 0, self.layout.sectors)
        return bytes(bitmap)

    def next_entry(self, end: int) -> int:
        """The BAT entry of a block behind sector `end`. Raises StorageError without space."""
        entry = self.layout.next_entry(end)
        stop = self.layout.end_sector(entry)
        if not self.layout.fits(stop):
            raise StorageError(self.storage.name, "allocate a block behind 2 TiB", errno.EFBIG)
        if self.storage.is_block_device and (stop + 1) * SECTOR > self._opened_size:
            raise StorageError(self.storage.name, "allocate another block", errno.ENOSPC)
        return entry

    def footer_offset(self) -> int:
        """Byte offset of the footer: at the end of a device, or behind the data of a file."""
        if self.storage.is_block_device:
            return self._opened_size - SECTOR
        return self.end * SECTOR

    def allocate(self, block: int) -> None:
        """Allocate a block; some that follow it too, while blocks are asked for in order.

        Raises SplitBrain, LeaseLost, StorageError.
        """
        hooks = self.writer.hooks
        wanted = self._consecutive(block) if self.full else [block]
        first = self.next_entry(self.end)
        self._require_sole_writer(block)
        try:
            entries = self._preallocate(wanted, first)
            hooks.reached("space-preallocated")
            self._unsettled = entries
            self.write_entries(entries)
            hooks.reached("bat-written")
        except BaseException:
            # The next allocation must clear again what this one may have written.
            self.forget()
            raise
        self.allocated(entries, self._new_bitmap)

    def _consecutive(self, block: int) -> list[int]:
        """The block, and those behind it that the same BAT write should allocate."""
        self._batch = min(2 * self._batch, MOST_AT_ONCE) if block == self._expected else 1
        sector_end = (block // ENTRIES_PER_SECTOR + 1) * ENTRIES_PER_SECTOR
        stop = min(block + self._batch, self.blocks.whole_blocks, sector_end)
        wanted = [block]
        while wanted[-1] + 1 < stop and self.blocks.bat[wanted[-1] + 1] == UNUSED:
            wanted.append(wanted[-1] + 1)
        self._expected = wanted[-1] + 1
        return wanted

    def _preallocate(self, wanted: list[int], entry: int) -> Entries:
        """Entries of the blocks that could be preallocated. Raises where the first could not."""
        entries: Entries = {}
        end = self.end
        for block in wanted:
            try:
                entry = self.next_entry(end) if entries else entry
                if self._preallocation.extend(end, entry, self._unused):
                    self._file_size = self.storage.size()
                    self.writer.wrote()
            except StorageError:
                if not entries:
                    raise
                # The earlier ones are durable already.
                self.forget()
                break
            entries[block] = entry
            end = self.layout.end_sector(entry)
        return entries

    def write_entries(self, entries: Entries) -> None:
        """Write entries of one BAT sector, with one write."""
        offset, _ = self.blocks.bat_sector(min(entries))
        self.writer.write(offset, self.blocks.bat_sector_with(entries))

    def allocated(self, entries: Entries, bitmap: bytes) -> None:
        """Note that blocks are allocated, each with this bitmap. Memory changes last."""
        for block, entry in entries.items():
            # The bitmap first: a reader that finds the entry must find the bitmap as well.
            self.blocks.set_bitmap(block, bitmap)
            self.blocks.set_entry(block, entry)
            self.end = self.layout.end_sector(entry)
            self._unused -= 1
        self._unsettled = {}
        for block, entry in entries.items():
            self.writer.hooks.allocated(block, entry)

    def settle(self) -> None:
        """Find out whether a failed BAT write reached the disk: then its blocks are allocated.

        Raises SplitBrain.
        """
        if not self._unsettled:
            return
        entries = self._unsettled
        offset, known = self.blocks.bat_sector(min(entries))
        found = self.storage.pread(offset, SECTOR)
        if found == self.blocks.bat_sector_with(entries):
            self.allocated(entries, self._new_bitmap)
        elif found != known:
            raise self._bat_changed(offset)
        self._unsettled = {}

    def forget(self) -> None:
        """Forget the preallocation, and read the file's size again."""
        self._preallocation.forget()
        self._file_size = None
        with contextlib.suppress(StorageError):
            self._file_size = self.storage.size()

    # another writer

    def _require_sole_writer(self, block: int) -> None:
        """Raise SplitBrain where BAT sector or file size differ from memory (rule 4)."""
        try:
            offset, known = self.blocks.bat_sector(block)
            if self.storage.pread(offset, SECTOR) != known:
                raise self._bat_changed(offset)
            self.require_same_size()
        except SplitBrain:
            # Where a lost lease is the cause, LeaseLost names the new owner.
            self.writer.hooks.may_write_metadata()
            raise

    def require_same_size(self) -> None:
        """Raise SplitBrain unless the file has its size: another BAT sector may have changed."""
        size = self.storage.size()
        if self._file_size is None:
            self._file_size = size
        if size != self._file_size:
            raise SplitBrain(
                f"{self.storage.name}: has {size} bytes, and had {self._file_size} after our last "
                "write: another host writes this image; nothing more is written here"
            )

    def _bat_changed(self, offset: int) -> SplitBrain:
        return SplitBrain(
            f"{self.storage.name}: the BAT sector at byte {offset} was changed: another host "
            "writes this image; nothing more is written here"
        )
