"""An open dynamic VHD: reads, writes, allocates, closes. What the shim serves.

`DynamicDisk` keeps the rules (docs/strategies.md): before every metadata write it asks whether it
may, and compares what is on the disk with memory. image/disk/tapdisk2.py does to the disk what
tapdisk2 does instead, so that the bug can be reproduced.
"""

from vhdtool.errors import SplitBrain, UncleanImage
from vhdtool.image.check.admission import require_servable
from vhdtool.image.disk.block_map import all_present
from vhdtool.image.disk.block_reader import FindParent, Parent
from vhdtool.image.disk.closing import write_batmap, write_footer
from vhdtool.image.disk.freeing import Freeing
from vhdtool.image.disk.hooks import Hooks
from vhdtool.image.metadata.read import BlockTables
from vhdtool.nbd.backend import FastPathLayout
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd import bits
from vhdtool.vhd.units import SECTOR, UNUSED, pad

__all__ = ["DynamicDisk", "Parent"]


class DynamicDisk(Freeing):
    """A dynamic (or differencing) image, open for reading and writing.

    Offsets and lengths are bytes; requests may be unaligned (two unaligned ones in one sector
    must not run at the same time). Raises NotAVhd, CorruptImage, UnsupportedImage, UncleanImage
    (no footer ends the file and `unclean` is false) on opening.

    `whole`: every sector of a new block counts as present, for what was not written is zero there
    as well. The bitmaps then say less, and writing costs less. Ignored where it cannot hold.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        unclean: bool = False,
        hooks: Hooks | None = None,
        parent: Parent | FindParent | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__(storage, hooks, parent, whole)
        self._accept(self._opened, unclean)

    def _accept(self, opened: BlockTables, unclean: bool) -> None:
        """Refuses an image that another writer may have, or that writing would ruin."""
        require_servable(self.storage, opened)
        if opened.closed(self._end):
            # A kill between the batmap and its checksum leaves the footer of the close before.
            self._dirty = not opened.batmap_believed and self.storage.writable
            return
        if not unclean:
            raise UncleanImage(
                f"{self.storage.name}: no footer at the end: a writer is still here or crashed; "
                "`vhdtool check --unclean` tells, `vhdtool repair` mends"
            )
        # Who takes over a crashed image leaves it closed, or the next one could not open it.
        self._dirty = True

    # writing

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes at an offset; what it needs of metadata is on the disk when it returns.

        Raises SplitBrain or LeaseLost when another writer has been here.
        """
        length = len(data)
        at = self._straight(offset, length)
        if at is not None and not (offset | length) & (SECTOR - 1):
            self._dirty = True
            self.storage.pwrite(at, data)
            return
        view = memoryview(data)
        done = 0
        for block, within, count in self._split(offset, len(view)):
            self._write_block(block, within, view[done : done + count])
            done += count

    def _write_block(self, block: int, within: int, data: memoryview) -> None:
        if within % SECTOR or len(data) % SECTOR:
            within, data = self._whole_sectors(block, within, data)
        first, sectors = within // SECTOR, len(data) // SECTOR
        self._dirty = True
        if self.bat[block] == UNUSED:
            with self._lock:
                self._settle()
                if self.bat[block] == UNUSED and self._allocate(block, first, data):
                    return
        entry = self.bat[block]
        self.storage.pwrite(self.layout.data_offset(entry) + within, data)
        bitmap = self._bitmap(block, entry)
        if bitmap is not None and not all_present(bitmap, first, sectors):
            self.hooks.reached("bitmap-data")
            self._set_bits(block, entry, first, sectors)

    def fast_path_layout(self, writing: bool) -> FastPathLayout | None:
        """Layout for the fast path, which will only read unless `writing`; None off a file."""
        storage = self.storage
        if not isinstance(storage, FileStorage):
            return None
        self._dirty = self._dirty or writing
        return FastPathLayout(
            storage.fileno(),
            storage.direct,
            self.size,
            self._block_bytes,
            self._bitmap_bytes,
            self.bat,
            self._full,
            zeros=self.parent is None,
            whole=self.whole,
        )

    def _whole_sectors(self, block: int, within: int, data: memoryview) -> tuple[int, memoryview]:
        """The request widened to sectors, with what the disk holds around it."""
        start = within // SECTOR * SECTOR
        end = pad(within + len(data))
        whole = bytearray(self._read_block(block, start, end - start))
        whole[within - start : within - start + len(data)] = data
        return start, memoryview(whole)

    def _set_bits(self, block: int, entry: int, first: int, sectors: int) -> None:
        with self._lock:
            bitmap = bytearray(self._map.load(block, entry))
            bits.set_bits(bitmap, first, sectors)
            begin = first // 8 // SECTOR
            end = (first + sectors - 1) // 8 // SECTOR + 1
            self._write_bitmap(entry, bytes(bitmap), begin, end)
            self.hooks.reached("bitmap-written")
            self._map.keep(block, bytes(bitmap))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Makes a range read as zeros; without a parent it allocates nothing."""
        for block, within, count in self._split(offset, length):
            if self.parent is not None or within % SECTOR or count % SECTOR:
                self._write_block(block, within, memoryview(bytes(count)))
                continue
            for at, size in self._own(block, within, count):
                self._dirty = True
                self.storage.zero(at, size)

    def flush(self) -> None:
        """All that was written is durable when it returns."""
        self.storage.flush()

    # closing

    def finish(self) -> bool:
        """Ends the file with its footer and leaves it open; True when it wrote one.

        Nothing is written when nothing was since opening, as tapdisk has it. Raises SplitBrain or
        LeaseLost instead of writing over what another host wrote. After a StorageError it may be
        tried again, and the disk is as usable as before.
        """
        with self._lock:
            if not self._dirty:
                return False
            self._end_file()
            self._dirty = False
            return True

    def close(self) -> bool:
        """`finish`, and the storage is closed in any case."""
        try:
            return self.finish()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the storage without writing anything: fenced."""
        self.storage.close()
        close_parent = getattr(self.parent, "close", None)
        if close_parent is not None:
            close_parent()

    def _end_file(self) -> None:
        """Rule 3: the end of the file is only cut after the BAT on disk was read again."""
        self._settle()
        self.hooks.may_write_metadata()
        self.storage.flush()
        raw = self.storage.pread(self.header.bat_offset, self.header.bat_bytes)
        if not self._map.same_bat(raw):
            raise SplitBrain(
                f"{self.storage.name}: at close the BAT on disk differs from memory: another host "
                "wrote this image; it stays as it is"
            )
        self._compare_size()
        self.hooks.reached("close-begun")
        try:
            write_batmap(self, self._opened.batmap, ask=self.hooks.may_write_metadata)
            self.hooks.reached("close-batmap")
            self.storage.flush()
            write_footer(self, self._footer_place(), ask=self.hooks.may_write_metadata)
        finally:
            self._lost_track()

    def _footer_place(self) -> int:
        """Byte offset of the footer: a device keeps its length, a file ends behind its data."""
        return (self._opened.file_size - SECTOR) if self._block_device else self._end * SECTOR

    def batmap(self, length: int) -> bytes:
        """The batmap in `length` bytes: the blocks of which every sector is on the disk."""
        return self._map.batmap(length)
