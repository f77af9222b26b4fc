"""New blocks of an open image: durable room with its bitmap, and then the table entry.

The data comes last. Until it does the block reads as it did without a place: zeros, or the parent.
"""

import contextlib
import errno

from vhdtool.errors import SplitBrain
from vhdtool.image.blockreader import BlockReader, FindParent, Parent
from vhdtool.image.hooks import Hooks
from vhdtool.image.room import Room
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd import bits
from vhdtool.vhd.units import SECTOR, UNUSED


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
        self._unused = len(self.bat) - len(self._opened.used)
        self._block_device = bool(getattr(storage, "is_block_device", False))
        self.whole = whole and not self._block_device and self.parent is None
        """A new block is full from the start. A device does not clear its data before."""
        self._new_bitmap = self._bitmap_of_new()
        self._room = Room(storage, self.layout, self._block_device, self._new_bitmap, self.hooks)
        self._file_size: int | None = self._opened.file_size
        """As we left it; None when it cannot be known."""
        self._unsettled: tuple[int, int] | None = None
        """(block, entry) of a BAT write that has not succeeded: it may be on the disk."""

    def _place(self) -> int:
        """The BAT entry of the next block. Raises StorageError where there is no room for it."""
        entry = self.layout.place(self._end)
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
        """Gives a block its place; True when it has written the data too. Memory last of all."""
        del first, data
        reached = self.hooks.reached
        entry = self._place()
        self._compare(block)
        try:
            if self._room.make(self._end, entry, self._unused):
                self._file_size = self.storage.size()
                self.wrote_metadata()
            reached("allocate-room")
            self._unsettled = block, entry
            self._write_bat_entry(block, entry)
            reached("allocate-bat")
        except BaseException:
            # What half an allocation wrote has to go before its place is used, whoever gets it.
            self._lost_track()
            raise
        self._allocated(block, entry, self._new_bitmap)
        return False

    def make_place(self, block: int) -> None:
        """The block has its place when it returns. Raises StorageError, SplitBrain, LeaseLost."""
        with self._lock:
            self._dirty = True
            self._settle()
            if self.bat[block] == UNUSED:
                self._allocate(block, 0, memoryview(b""))

    def _settle(self) -> None:
        """A failed write of a BAT sector may have reached the disk: then the block is there."""
        if self._unsettled is None:
            return
        block, entry = self._unsettled
        offset, known = self._map.bat_sector(block)
        found = self.storage.pread(offset, SECTOR)
        if found == self._map.bat_sector_with(block, entry):
            self._allocated(block, entry, self._new_bitmap)
        elif found != known:
            raise self._split_brain(offset)
        self._unsettled = None

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

    def _allocated(self, block: int, entry: int, bitmap: bytes) -> None:
        # The bitmap first: who finds the place must find the bitmap of that place.
        self._map.keep(block, bitmap)
        self._map.placed(block, entry)
        self._unsettled = None
        self._end = self.layout.end_sector(entry)
        self._unused -= 1
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

    def _write_bat_entry(self, block: int, entry: int) -> None:
        offset, _ = self._map.bat_sector(block)
        raw = self._map.bat_sector_with(block, entry)
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
