"""New blocks of an open image: room, data, bitmap, and last the table entry that names them."""

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from vhdtool.errors import SplitBrain
from vhdtool.image.blockreader import BlockReader, FindParent, Parent
from vhdtool.image.room import Room
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd import bits
from vhdtool.vhd.units import SECTOR


@dataclass(frozen=True)
class Hooks:
    """What the owner of the disk wants to be asked and told."""

    may_write_metadata: Callable[[], None] = lambda: None
    """Raises LeaseLost when nothing more may be written."""
    allocated: Callable[[int, int], None] = lambda block, sector: None
    """A block has got its place (BAT entry) in the file."""
    reached: Callable[[str], None] = lambda point: None
    """A named point of an operation: where a test kills the process."""
    clock: Callable[[], float] = monotonic


class Allocator(BlockReader):
    """Allocates, and keeps track of where the file ends. Call with the disk's lock held."""

    faithful = False

    def __init__(
        self, storage: Storage, hooks: Hooks | None, parent: Parent | FindParent | None
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
        self._room = Room(storage, self.layout, self._block_device)
        self._file_size: int | None = self._opened.file_size
        """As we left it; None when it cannot be known."""
        self._unsettled: tuple[int, int, bytes] | None = None
        """(block, entry, bitmap) of a BAT write that has not succeeded: it may be on the disk."""

    def _place(self) -> int:
        """The BAT entry of the next block. Raises StorageError where there is no room for it."""
        entry = self.layout.place(self._end)
        end = self.layout.end_sector(entry)
        if not self.layout.fits(end):
            raise StorageError(self.storage.name, "place a block behind 2 TiB", errno.EFBIG)
        if self._block_device and (end + 1) * SECTOR > self._opened.file_size:
            raise StorageError(self.storage.name, "place another block", errno.ENOSPC)
        return entry

    def _allocate(self, block: int, first: int, data: memoryview) -> None:
        """Zeros, data and bitmap before the BAT says where they are; memory last of all."""
        layout, reached = self.layout, self.hooks.reached
        entry = self._place()
        self.hooks.may_write_metadata()
        self._compare_bat_sector(block)
        self._compare_size()
        try:
            if self._room.make(self._end, entry, self._unused):
                self._file_size = self.storage.size()
            reached("allocate-zeroed")
            bitmap = bytearray(layout.bitmap_sectors * SECTOR)
            bits.set_bits(bitmap, first, len(data) // SECTOR)
            self.storage.pwrite(layout.data_offset(entry) + first * SECTOR, data)
            reached("allocate-data")
            self._write_bitmap(entry, bytes(bitmap), 0, layout.bitmap_sectors)
            reached("allocate-bitmap")
            self._unsettled = block, entry, bytes(bitmap)
            self._write_bat_entry(block, entry)
            reached("allocate-bat")
        except BaseException:
            # What half an allocation wrote has to go before its place is used, whoever gets it.
            self._lost_track()
            raise
        self._allocated(block, entry, bytes(bitmap))

    def _settle(self) -> None:
        """A failed write of a BAT sector may have reached the disk: then the block is there."""
        if self._unsettled is None:
            return
        block, entry, bitmap = self._unsettled
        offset, known = self._map.bat_sector(block)
        found = self.storage.pread(offset, SECTOR)
        if found == self._map.bat_sector_with(block, entry):
            self._allocated(block, entry, bitmap)
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
