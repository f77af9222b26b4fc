"""An open dynamic VHD: reads, writes, allocates, closes. It is what the shim serves."""

from collections.abc import Callable

from vhdtool.errors import UnsupportedImage
from vhdtool.image.disk.allocator import Allocator
from vhdtool.image.disk.base import Hooks, OpenDisk, Parent
from vhdtool.image.disk.block_map import BlockMap, all_present
from vhdtool.image.disk.block_reader import BlockReader
from vhdtool.image.disk.metadata_writer import MetadataWriter
from vhdtool.image.disk.policy import Guarded, WritePolicy
from vhdtool.image.metadata.read import read_block_tables
from vhdtool.nbd.backend import FastPathLayout
from vhdtool.ranges import DataRange, merge_data
from vhdtool.storage import Storage
from vhdtool.vhd import bits
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED, pad

FindParent = Callable[[Header], Parent]
"""Opens the parent that a differencing disk's header names."""
_NO_DATA = memoryview(b"")


class DynamicDisk(OpenDisk):
    """A dynamic (or differencing) image, open for reading and writing.

    It has a block map, a reader, an allocator and a writer of metadata; the policy decides in
    which order the last two write. Requests may be unaligned (two unaligned ones in one sector
    must not run at the same time). Raises NotAVhd, CorruptImage, UnsupportedImage, UncleanImage
    (no footer ends the file and `unclean` is false) on opening.

    `whole`: a new block counts as full at once, since its absent sectors are zeros in the file
    too. Then a write changes no bitmap. Ignored for a child and on a device, which is not zeroed.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        unclean: bool = False,
        hooks: Hooks | None = None,
        parent: Parent | FindParent | None = None,
        whole: bool = False,
        policy: WritePolicy | None = None,
    ) -> None:
        self.storage = storage
        self.policy = policy = policy or Guarded()
        tables = read_block_tables(storage)
        self.header = tables.header
        self.size = tables.footer.current_size
        if tables.footer.disk_type == DIFFERENCING:
            self.parent = _opened(parent, storage.name, tables.header)
        self.whole = whole and not storage.is_block_device and self.parent is None
        self._map = BlockMap(tables, storage)
        self.bat = self._map.bat
        self._reader = BlockReader(storage, self._map, self.parent, self.size, policy.pads_short)
        self._writer = MetadataWriter(storage, tables, policy.hooks(hooks or Hooks()))
        end = policy.data_end(storage, tables)
        self._allocator = Allocator(self._writer, self._map, tables, end, self.whole)
        self._dirty = policy.begin(self._allocator, tables, unclean)
        """Whether `finish` has to write."""

    @property
    def last_metadata(self) -> float | None:
        return self._writer.last_time

    @property
    def truncated_to(self) -> int | None:
        return self._writer.truncated_to

    # reading

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes: an absent sector comes from the parent, or is zeros.

        Raises CorruptImage where the file has lost data that the metadata calls present.
        """
        file_offset = self._map.file_offset(offset, length)
        if file_offset is not None:
            return self._reader.present(file_offset, length)
        return self._reader.read(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """Announce that a range will be read. Nothing is fetched from a parent."""
        for block, within, count in self._reader.split(offset, length):
            if (entry := self.bat[block]) != UNUSED:
                self.storage.will_need(self._map.layout.data_offset(entry) + within, count)

    def extents(self, offset: int, length: int, most: int = 1 << 14) -> list[DataRange]:
        return merge_data(self._reader.extents(offset, length), most)

    # writing

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset; the metadata that they need is on the disk on return.

        Raises SplitBrain or LeaseLost when another writer has been here.
        """
        length = len(data)
        file_offset = self._map.file_offset(offset, length)
        if file_offset is not None and not (offset | length) & (SECTOR - 1):
            self._dirty = True
            self.storage.pwrite(file_offset, data)
            return
        view = memoryview(data)
        done = 0
        for block, within, count in self._reader.split(offset, length):
            self._write_block(block, within, view[done : done + count])
            done += count

    def _write_block(self, block: int, within: int, data: memoryview) -> None:
        if within % SECTOR or len(data) % SECTOR:
            within, data = self._whole_sectors(block, within, data)
        first, sectors = within // SECTOR, len(data) // SECTOR
        self._dirty = True
        if self.bat[block] == UNUSED and self._allocate(block, first, data):
            return
        entry = self.bat[block]
        self.storage.pwrite(self._map.layout.data_offset(entry) + within, data)
        bitmap = self._map.bitmap(block, entry)
        if bitmap is not None and not all_present(bitmap, first, sectors):
            self._writer.hooks.reached("data-written")
            self._set_bits(block, entry, first, sectors)

    def _whole_sectors(self, block: int, within: int, data: memoryview) -> tuple[int, memoryview]:
        """The request widened to whole sectors, with what the disk holds around it."""
        start = within // SECTOR * SECTOR
        end = pad(within + len(data))
        whole = bytearray(self._reader.read_block(block, start, end - start))
        whole[within - start : within - start + len(data)] = data
        return start, memoryview(whole)

    def _set_bits(self, block: int, entry: int, first: int, sectors: int) -> None:
        with self._map.lock:
            bitmap = bytearray(self._map.load_bitmap(block, entry))
            bits.set_bits(bitmap, first, sectors)
            begin = first // 8 // SECTOR
            end = (first + sectors - 1) // 8 // SECTOR + 1
            self._writer.write_bitmap(entry, bytes(bitmap), begin, end)
            self._writer.hooks.reached("bitmap-written")
            self._map.set_bitmap(block, bytes(bitmap))

    def allocate(self, block: int) -> None:
        """Allocate a block, unless it is allocated. Raises StorageError, SplitBrain, LeaseLost."""
        self._allocate(block, 0, _NO_DATA)

    def _allocate(self, block: int, first: int, data: memoryview) -> bool:
        """Allocate a block for `data`, unless allocated; True: it has written the data too."""
        with self._map.lock:
            self._dirty = True
            self._allocator.settle()
            if self.bat[block] != UNUSED:
                return False
            return self.policy.allocate(self._allocator, block, first, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeros; without a parent it allocates nothing."""
        for block, within, count in self._reader.split(offset, length):
            if self.parent is not None or within % SECTOR or count % SECTOR:
                self._write_block(block, within, memoryview(bytes(count)))
                continue
            for at, size in self._reader.present_ranges(block, within, count):
                self._dirty = True
                self.storage.zero(at, size)

    def trim(self, offset: int, length: int) -> None:
        """Free the whole sectors of a range in this file, where that is cheap.

        Freed sectors read as zeros. They stay allocated, so a parent does not show through.
        """
        first, end = pad(offset), (offset + length) // SECTOR * SECTOR
        if not self.policy.trims or end <= first:
            return
        for block, within, count in self._reader.split(first, end - first):
            for at, size in self._reader.present_ranges(block, within, count):
                self._dirty = True
                self.storage.discard(at, size)

    def flush(self) -> None:
        self.storage.flush()

    def fast_path_layout(self, writing: bool) -> FastPathLayout | None:
        fd = self.storage.fileno()
        if fd is None:
            return None
        self._dirty = self._dirty or writing
        return FastPathLayout(
            fd,
            self.storage.direct,
            self.size,
            self._map.block_bytes,
            self._map.bitmap_bytes,
            self.bat,
            self._map.full,
            zeros=self.parent is None,
            whole=self.whole,
        )

    # closing

    def finish(self) -> bool:
        """End the file with its footer and leave it open; True when it wrote one.

        Writes nothing when nothing was written since opening, as tapdisk2 does. Raises SplitBrain
        or LeaseLost instead of overwriting what another host wrote. After a StorageError it may be
        tried again, and the disk can still be used.
        """
        with self._map.lock:
            if not self._dirty:
                return False
            self.policy.finish(self._allocator)
            self._dirty = False
            return True

    def abandon(self) -> None:
        self.storage.close()
        if self.parent is not None:
            self.parent.close()


def _opened(parent: Parent | FindParent | None, name: str, header: Header) -> Parent:
    if parent is None:
        raise UnsupportedImage(f"{name}: a differencing disk needs its parent opened first")
    return parent(header) if callable(parent) else parent
