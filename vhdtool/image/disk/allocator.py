"""New blocks of an open image: durable room with its bitmap, and then the table entry.

The data comes last. Until it does the block reads as it did without a place: zeros, or the parent.
"""

import contextlib
import errno

from vhdtool.errors import SplitBrain
from vhdtool.image.check.regions import first_free_sector
from vhdtool.image.disk.block_reader import BlockReader, FindParent, Parent
from vhdtool.image.disk.hooks import Hooks
from vhdtool.image.disk.preallocation import Room
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd import bits
from vhdtool.vhd.units import SECTOR, UNUSED

MOST_IN_A_ROW = 4
"""Blocks that one BAT write places while a disk is filled in order."""
Places = dict[int, int]
"""Block -> BAT entry."""


class Allocator(BlockReader):
    """Allocates, and keeps track of where the file ends. Call with the disk's lock held."""

    faithful = False

    def __init__(
        self,
        storage: Storage,
        hooks: Hooks | None,
        parent: Parent | FindParent | None,
        whole: bool = False,
    ) -> None:
        super().__init__(storage, parent)
        self.hooks = hooks or Hooks()
        self.last_metadata: float | None = None
        """When this open last wrote BAT, bitmap, batmap or footer, or truncated."""
        self.truncated_to: int | None = None
        self._dirty = False
        self._end = self._opened.end
        if not self.faithful:
            ends, bat = self._opened.ends, self._opened.bat
            self._end = first_free_sector(storage, ends, self.layout, bat, self._end)
        self._unused = len(self.bat) - len(self._opened.used)
        self._block_device = storage.is_block_device
        self.whole = whole and not self._block_device and self.parent is None
        """A new block is full from the start. A device does not clear its data before."""
        self._new_bitmap = self._bitmap_of_new()
        self._room = Room(storage, self.layout, self._block_device, self._new_bitmap, self.hooks)
        self._file_size: int | None = self._opened.file_size
        """As we left it; None when it cannot be known."""
        self._unsettled: Places = {}
        """Of a BAT write that has not succeeded: it may be on the disk."""
        self._row = 1
        self._next_in_row = -1

    def _place(self, behind: int) -> int:
        """The BAT entry of a block behind a sector. Raises StorageError where it has no room."""
        entry = self.layout.place(behind)
        end = self.layout.end_sector(entry)
        if not self.layout.fits(end):
            raise StorageError(self.storage.name, "place a block behind 2 TiB", errno.EFBIG)
        if self._block_device and (end + 1) * SECTOR > self._opened.file_size:
            raise StorageError(self.storage.name, "place another block", errno.ENOSPC)
        return entry

    def _bitmap_of_new(self) -> bytes:
        length = self.layout.bitmap_sectors * SECTOR
        bitmap = bytearray(length)
        if self.whole:
            bits.set_bits(bitmap, 0, self.layout.sectors)
        return bytes(bitmap)

    def _allocate(self, block: int, first: int, data: memoryview) -> bool:
        """Gives a block its place; True when it has written the data too. Memory last of all.

        Where blocks are asked for in their order, so get some behind it: one write places them.
        """
        del first, data
        self._allocate_all(self._in_a_row(block) if self.whole else [block])
        return False

    def make_place(self, block: int) -> None:
        """The block has its place when it returns. Raises StorageError, SplitBrain, LeaseLost."""
        with self._lock:
            self._dirty = True
            self._settle()
            if self.bat[block] == UNUSED:
                self._allocate(block, 0, memoryview(b""))

    def _in_a_row(self, block: int) -> list[int]:
        """The block, and those behind it that are worth placing with the same write."""
        self._row = min(2 * self._row, MOST_IN_A_ROW) if block == self._next_in_row else 1
        a_sector = SECTOR // 4
        stop = min(block + self._row, self._whole_blocks, (block // a_sector + 1) * a_sector)
        blocks = [block]
        while blocks[-1] + 1 < stop and self.bat[blocks[-1] + 1] == UNUSED:
            blocks.append(blocks[-1] + 1)
        self._next_in_row = blocks[-1] + 1
        return blocks

    def _allocate_all(self, blocks: list[int]) -> None:
        """Places blocks that share a BAT sector; all but the first only where that is easy."""
        reached = self.hooks.reached
        first = self._place(self._end)
        self._compare(blocks[0])
        try:
            places = self._make_room(blocks, first)
            reached("allocate-room")
            self._unsettled = places
            self._write_bat_entries(places)
            reached("allocate-bat")
        except BaseException:
            # What half an allocation wrote has to go before its place is used, whoever gets it.
            self._lost_track()
            raise
        self._allocated(places)

    def _make_room(self, blocks: list[int], entry: int) -> Places:
        places: Places = {}
        end = self._end
        for block in blocks:
            try:
                entry = self._place(end) if places else entry
                if self._room.make(end, entry, self._unused):
                    self._file_size = self.storage.size()
                    self.wrote_metadata()
            except StorageError:
                if not places:
                    raise
                # Those that have room are durable already.
                self._lost_track()
                break
            places[block] = entry
            end = self.layout.end_sector(entry)
        return places

    def _settle(self) -> None:
        """A failed write of a BAT sector may have reached the disk: then the blocks are there."""
        if not self._unsettled:
            return
        places = self._unsettled
        offset, known = self._map.bat_sector(min(places))
        found = self.storage.pread(offset, SECTOR)
        if found == self._map.bat_sector_with(places):
            self._allocated(places)
        elif found != known:
            raise self._split_brain(offset)
        self._unsettled = {}

    def _split_brain(self, offset: int) -> SplitBrain:
        return SplitBrain(
            f"{self.storage.name}: the BAT sector at byte {offset} changed under us: another "
            "host writes this image; nothing more is written here"
        )

    def _lost_track(self) -> None:
        self._room.forget()
        self._file_size = None
        with contextlib.suppress(StorageError):
            self._file_size = self.storage.size()

    def _allocated(self, places: Places, bitmap: bytes | None = None) -> None:
        for block, entry in places.items():
            # The bitmap first: who finds the place must find the bitmap of that place.
            self._map.keep(block, self._new_bitmap if bitmap is None else bitmap)
            self._map.placed(block, entry)
            self._end = self.layout.end_sector(entry)
            self._unused -= 1
        self._unsettled = {}
        for block, entry in places.items():
            self.hooks.allocated(block, entry)

    def _compare(self, block: int) -> None:
        try:
            self._compare_bat_sector(block)
            self._compare_size()
        except SplitBrain:
            # Where a lost lease is the cause it says more: who has it now.
            self.hooks.may_write_metadata()
            raise

    def _compare_bat_sector(self, block: int) -> None:
        """Rule 4: a BAT sector that differs from memory means another writer."""
        offset, known = self._map.bat_sector(block)
        if self.storage.pread(offset, SECTOR) != known:
            raise self._split_brain(offset)

    def _compare_size(self) -> None:
        """Another writer's block may be in a BAT sector that we do not look at; the end tells."""
        size = self.storage.size()
        if self._file_size is None:
            self._file_size = size
        if size != self._file_size:
            raise SplitBrain(
                f"{self.storage.name}: has {size} bytes, we left it with {self._file_size}: "
                "another host writes this image; nothing more is written here"
            )

    def _write_bat_entries(self, places: Places) -> None:
        """Entries of one BAT sector, with one write."""
        offset, _ = self._map.bat_sector(min(places))
        raw = self._map.bat_sector_with(places)
        self.hooks.may_write_metadata()
        self.storage.pwrite(offset, raw)
        self.wrote_metadata()

    def _write_bitmap(self, entry: int, bitmap: bytes, begin: int, end: int) -> None:
        """Sectors [begin, end) of a bitmap."""
        self.hooks.may_write_metadata()
        self.storage.pwrite((entry + begin) * SECTOR, bitmap[begin * SECTOR : end * SECTOR])
        self.wrote_metadata()

    def wrote_metadata(self) -> None:
        """Notes the time: the last metadata write says how near a hand-over was to trouble."""
        self.last_metadata = self.hooks.clock()
