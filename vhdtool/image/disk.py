"""An open dynamic VHD: reads, writes, allocates, closes. What the shim serves.

Two personalities share this code. *Guarded* asks before every metadata write whether it may, and
compares the BAT on disk with memory (docs/strategies.md, the rules). *Faithful* does to the disk
what tapdisk2 does, write by write: it trusts its memory, so that the bug can be reproduced.
Facts: blktap's drivers/block-vhd.c and vhd/lib/libvhd.c, checked on a running tapdisk.
"""

import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from vhdtool.errors import CorruptImage, NotAVhd, SplitBrain, UncleanImage, UnsupportedImage
from vhdtool.storage import Storage
from vhdtool.vhd import batmap as batmaps
from vhdtool.vhd import bits
from vhdtool.vhd.bat import pack_bat_sector, unpack_bat
from vhdtool.vhd.batmap import BatmapHeader
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, DYNAMIC, Footer
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import KILLED, SECTOR, UNUSED, pad


class Parent(Protocol):
    """What lies below a differencing disk; bytes at byte offsets."""

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class Hooks:
    """What the owner of the disk wants to be asked and told."""

    may_write_metadata: Callable[[], None] = lambda: None
    """Raises LeaseLost when nothing more may be written."""
    allocated: Callable[[int, int], None] = lambda block, sector: None
    """A block has got its place (BAT entry) in the file."""
    clock: Callable[[], float] = monotonic


class DynamicDisk:
    """A dynamic (or differencing) image, open for reading and writing.

    Offsets and lengths are bytes; requests may be unaligned. Raises NotAVhd, CorruptImage,
    UncleanImage (guarded, when no footer ends the file and `unclean` is false) on opening.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        faithful: bool = False,
        unclean: bool = False,
        kill_footer: bool = False,
        hooks: Hooks | None = None,
        parent: Parent | None = None,
    ) -> None:
        self.storage = storage
        self.faithful = faithful
        self.hooks = hooks or Hooks()
        self.parent = parent
        self.last_metadata: float | None = None
        """When this open last wrote BAT, bitmap, batmap or footer, or truncated."""
        self.truncated_to: int | None = None
        self._lock = threading.RLock()
        self._dirty = False
        self._read_metadata()
        self.footer_at_end = self._footer_ends_the_file()
        if not (faithful or unclean or self.footer_at_end):
            raise UncleanImage(
                f"{storage.name}: no footer at the end: a writer is still here or crashed; "
                "`vhdtool check --unclean` tells, `vhdtool repair` mends"
            )
        if kill_footer:
            # tapdisk's "strict" open after a pause: it does not look what it overwrites.
            self.storage.pwrite(self.storage.size() - SECTOR, KILLED)
            self._stamp()
            self._dirty = True

    # opening

    def _read_metadata(self) -> None:
        name, storage = self.storage.name, self.storage
        size = storage.size()
        if size < SECTOR + HEADER_SIZE:
            raise NotAVhd(f"{name}: {size} bytes are no dynamic VHD")
        footer = Footer.unpack(storage.pread(max(0, size - SECTOR), SECTOR))
        if not footer.valid:
            footer = Footer.unpack(storage.pread(0, SECTOR))
        if not footer.has_cookie:
            raise NotAVhd(f"{name}: neither the end nor the start of the file holds a VHD footer")
        footer.validate(name, "the footer")
        if footer.disk_type not in (DYNAMIC, DIFFERENCING):
            raise UnsupportedImage(f"{name}: a {footer.type_name} disk has no blocks to allocate")
        if footer.disk_type == DIFFERENCING and self.parent is None:
            raise UnsupportedImage(f"{name}: a differencing disk needs its parent opened first")
        if footer.data_offset + HEADER_SIZE > size:
            raise CorruptImage(f"{name}: the header lies behind the end of the file")
        header = Header.unpack(storage.pread(footer.data_offset, HEADER_SIZE))
        header.validate(name)
        layout = BlockLayout(header.block_bytes)
        if header.bat_end > size:
            raise CorruptImage(
                f"{name}: the BAT ({header.max_entries} entries) ends behind the file"
            )
        if header.max_entries < layout.blocks_for(footer.current_size):
            raise CorruptImage(f"{name}: the BAT is too short for {footer.current_size} bytes")
        self.footer, self.header, self.layout = footer, header, layout
        self.size = footer.current_size
        self._raw_bat = bytearray(storage.pread(header.bat_offset, header.bat_bytes))
        self.bat: array[int] = unpack_bat(self._raw_bat, header.max_entries)
        self._bitmaps: dict[int, bytearray] = {}
        self._read_batmap(size)
        self._end = self._end_of_data()

    def _read_batmap(self, size: int) -> None:
        self._batmap: bytearray | None = None
        self._batmap_header: BatmapHeader | None = None
        if not batmaps.batmap_possible(self.footer) or self.header.bat_end + SECTOR > size:
            return
        head = BatmapHeader.unpack(self.storage.pread(self.header.bat_end, SECTOR))
        if not head.has_cookie or head.offset + head.sectors * SECTOR > size:
            return
        raw = self.storage.pread(head.offset, head.sectors * SECTOR)
        if len(raw) * 8 < len(self.bat):
            return
        right = batmaps.batmap_checksum(raw, self.size, head.version) == head.checksum
        self._batmap_header = head
        # A batmap is a shortcut: one that cannot be believed says nothing about any block.
        self._batmap = bytearray(raw) if right else bytearray(len(raw))

    def _end_of_headers(self) -> int:
        end = max(self.footer.data_offset + HEADER_SIZE, self.header.bat_end)
        if self._batmap_header is not None:
            map_end = self._batmap_header.offset + self._batmap_header.sectors * SECTOR
            end = max(end, self.header.bat_end + SECTOR, map_end)
        for locator in self.header.locators:
            if locator.used and locator.room is not None:
                end = max(end, locator.offset + locator.room)
        return pad(end) // SECTOR

    def _end_of_data(self) -> int:
        """The sector behind the last block (or the headers), as memory has it."""
        end = self._end_of_headers()
        highest = max((entry for entry in self.bat if entry != UNUSED), default=None)
        return end if highest is None else max(end, self.layout.end_sector(highest))

    def _footer_ends_the_file(self) -> bool:
        size = self.storage.size()
        if size - SECTOR < self._end * SECTOR:
            return False
        return Footer.unpack(self.storage.pread(size - SECTOR, SECTOR)).valid

    # reading

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; what is not allocated comes from the parent, or is zeros."""
        parts = [
            self._read_block(block, within, count)
            for block, within, count in self._split(offset, length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _split(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(block, byte offset within it, bytes) for each block that a request touches."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{self.storage.name}: {length} bytes at {offset} pass the disk's end")
        while length:
            block, within = divmod(offset, self.layout.block_bytes)
            count = min(length, self.layout.block_bytes - within)
            yield block, within, count
            offset += count
            length -= count

    def _read_block(self, block: int, within: int, count: int) -> bytes:
        entry = self.bat[block]
        if entry == UNUSED:
            return self._below(block, within, count)
        start = self.layout.data_offset(entry) + within
        bitmap = self._bitmap(block, entry)
        if bitmap is None:
            return self.storage.pread(start, count).ljust(count, b"\0")
        first, last = within // SECTOR, (within + count - 1) // SECTOR
        out = []
        window = list(_window(bitmap, first, last - first + 1))
        for present, at, sectors in window:
            begin = max(within, at * SECTOR)
            end = min(within + count, (at + sectors) * SECTOR)
            if present:
                data = self.storage.pread(start + begin - within, end - begin)
                out.append(data.ljust(end - begin, b"\0"))
            else:
                out.append(self._below(block, begin, end - begin))
        return out[0] if len(out) == 1 else b"".join(out)

    def _below(self, block: int, within: int, count: int) -> bytes:
        if self.parent is None:
            return bytes(count)
        return self.parent.read(block * self.layout.block_bytes + within, count)

    def _bitmap(self, block: int, entry: int) -> bytearray | None:
        """The block's bitmap from the cache or the disk; None when every sector is present."""
        if self._batmap is not None and bits.test_bit(self._batmap, block):
            return None
        bitmap = self._bitmaps.get(block)
        if bitmap is None:
            length = self.layout.bitmap_sectors * SECTOR
            with self._lock:
                raw = self.storage.pread(entry * SECTOR, length)
                bitmap = self._bitmaps.setdefault(block, bytearray(raw.ljust(length, b"\0")))
        return bitmap

    # writing

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes at an offset; what it needs of metadata is on the disk when it returns.

        Raises SplitBrain or LeaseLost (guarded) when another writer has been here.
        """
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
                if self.bat[block] == UNUSED:
                    self._allocate(block, first, data)
                    return
        entry = self.bat[block]
        self.storage.pwrite(self.layout.data_offset(entry) + within, data)
        bitmap = self._bitmap(block, entry)
        if bitmap is not None and not _all_set(bitmap, first, sectors):
            with self._lock:
                self._set_bits(block, entry, bitmap, first, sectors)

    def _whole_sectors(self, block: int, within: int, data: memoryview) -> tuple[int, memoryview]:
        """The request widened to sectors, with what the disk holds around it."""
        start = within // SECTOR * SECTOR
        end = pad(within + len(data))
        whole = bytearray(self._read_block(block, start, end - start))
        whole[within - start : within - start + len(data)] = data
        return start, memoryview(whole)

    def _allocate(self, block: int, first: int, data: memoryview) -> None:
        layout = self.layout
        entry = layout.place(self._end)
        if not layout.fits(entry + layout.total_sectors):
            raise UnsupportedImage(f"{self.storage.name}: the file cannot grow past 2 TiB")
        if not self.faithful:
            self.hooks.may_write_metadata()
            self._compare_bat_sector(block)
        # Zeros from the end of data on: they also take away the footer that stands there.
        self.storage.zero(self._end * SECTOR, (entry - self._end + layout.total_sectors) * SECTOR)
        if self.footer_at_end and not self.faithful:
            # The zeros must be durable before the BAT points here: else, after a crash, the old
            # footer's bytes could be taken for a bitmap. Later blocks lie behind the old end.
            self.storage.flush()
        self.footer_at_end = False
        bitmap = bytearray(layout.bitmap_sectors * SECTOR)
        bits.set_bits(bitmap, first, len(data) // SECTOR)
        self.storage.pwrite(layout.data_offset(entry) + first * SECTOR, data)
        if not self.faithful:
            self._write_bitmap(entry, bitmap, 0, layout.bitmap_sectors)
        self._write_bat_entry(block, entry)
        if self.faithful:
            self._write_bitmap(entry, bitmap, 0, layout.bitmap_sectors)
        self._bitmaps[block] = bitmap
        self._end = layout.end_sector(entry)
        self._note_full(block, bitmap)
        self.hooks.allocated(block, entry)

    def _bat_place(self, index: int) -> tuple[int, slice]:
        return self.header.bat_offset + index * SECTOR, slice(index * SECTOR, (index + 1) * SECTOR)

    def _compare_bat_sector(self, block: int) -> None:
        """Rule 4: a BAT sector that differs from memory means another writer."""
        offset, part = self._bat_place(block * 4 // SECTOR)
        if self.storage.pread(offset, SECTOR) != self._raw_bat[part]:
            raise SplitBrain(
                f"{self.storage.name}: the BAT sector at byte {offset} changed under us: another "
                "host writes this image; nothing more is written here"
            )

    def _write_bat_entry(self, block: int, entry: int) -> None:
        self.bat[block] = entry
        index, raw = pack_bat_sector(self.bat, block)
        offset, part = self._bat_place(index)
        # The padding of the last sector stays as its creator wrote it.
        kept = min(SECTOR, len(self.bat) * 4 - part.start)
        self._raw_bat[part.start : part.start + kept] = raw[:kept]
        if not self.faithful:
            self.hooks.may_write_metadata()
        self.storage.pwrite(offset, bytes(self._raw_bat[part]))
        self._stamp()

    def _set_bits(
        self, block: int, entry: int, bitmap: bytearray, first: int, sectors: int
    ) -> None:
        bits.set_bits(bitmap, first, sectors)
        begin = first // 8 // SECTOR
        end = (first + sectors - 1) // 8 // SECTOR + 1
        self._write_bitmap(entry, bitmap, begin, end)
        self._note_full(block, bitmap)

    def _write_bitmap(self, entry: int, bitmap: bytearray, begin: int, end: int) -> None:
        if not self.faithful:
            self.hooks.may_write_metadata()
        part = bytes(bitmap[begin * SECTOR : end * SECTOR])
        self.storage.pwrite((entry + begin) * SECTOR, part)
        self._stamp()

    def _note_full(self, block: int, bitmap: bytearray) -> None:
        if self._batmap is not None and bits.all_set(bitmap, self.layout.sectors):
            bits.set_bits(self._batmap, block, 1)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Makes a range read as zeros; without a parent it allocates nothing."""
        for block, within, count in self._split(offset, length):
            if self.parent is not None or within % SECTOR or count % SECTOR:
                self._write_block(block, within, memoryview(bytes(count)))
                continue
            entry = self.bat[block]
            if entry == UNUSED:
                continue
            self._dirty = True
            bitmap = self._bitmap(block, entry)
            first, sectors = within // SECTOR, count // SECTOR
            window = [(True, first, sectors)] if bitmap is None else _window(bitmap, first, sectors)
            for present, at, run in window:
                if present:
                    self.storage.zero(self.layout.data_offset(entry) + at * SECTOR, run * SECTOR)

    def flush(self) -> None:
        """All that was written is durable when it returns."""
        self.storage.flush()

    # closing

    def close(self) -> bool:
        """Ends the file with its footer and closes it; True when it wrote one.

        Nothing is written when nothing was since opening, as tapdisk has it. Guarded: raises
        SplitBrain or LeaseLost instead of writing over what another host wrote; the storage is
        closed in any case.
        """
        try:
            if not self._dirty:
                return False
            with self._lock:
                if not self.faithful:
                    self._compare_whole_bat()
                self._write_batmap()
                self._write_footer()
            return True
        finally:
            self.storage.close()

    def abandon(self) -> None:
        """Closes the file without writing anything: fenced."""
        self.storage.close()

    def _compare_whole_bat(self) -> None:
        """Rule 3: the end of the file is only cut after the BAT on disk was read again."""
        self.hooks.may_write_metadata()
        self.storage.flush()
        raw = self.storage.pread(self.header.bat_offset, self.header.bat_bytes)
        if raw != self._raw_bat:
            raise SplitBrain(
                f"{self.storage.name}: at close the BAT on disk differs from memory: another host "
                "wrote this image; it stays as it is"
            )

    def _write_batmap(self) -> None:
        head = self._batmap_header
        if head is None or self._batmap is None:
            return
        head = BatmapHeader(
            offset=head.offset,
            sectors=head.sectors,
            version=head.version,
            marker=head.marker,
            key_set=head.key_set,
            key_nonce=head.key_nonce,
            key_hash=head.key_hash,
            checksum=batmaps.batmap_checksum(bytes(self._batmap), self.size, head.version),
        )
        # The map before its header: until the checksum fits, the map says nothing.
        self.storage.pwrite(head.offset, bytes(self._batmap))
        self.storage.pwrite(self.header.bat_end, head.pack())
        self._stamp()

    def _write_footer(self) -> None:
        end = self._end_of_data() * SECTOR
        if not self.faithful:
            self.hooks.may_write_metadata()
            self.storage.flush()
        raw = self.footer.pack()
        self.storage.pwrite(end, raw)
        if self.storage.size() != end + SECTOR:
            self.storage.truncate(end + SECTOR)
        self.truncated_to = end + SECTOR
        if self.faithful:
            self.storage.pwrite(0, raw)
        self.storage.flush()
        self.footer_at_end = True
        self._stamp()

    def _stamp(self) -> None:
        self.last_metadata = self.hooks.clock()


def _window(bitmap: bytearray, first: int, count: int) -> Iterator[tuple[bool, int, int]]:
    """Runs of a bitmap within [first, first + count), at their place in the block."""
    byte = first // 8
    part = bitmap[byte : (first + count + 7) // 8]
    for present, at, sectors in bits.runs(part, first - byte * 8 + count):
        begin = max(first, at + byte * 8)
        end = at + byte * 8 + sectors
        if end > begin:
            yield present, begin, end - begin


def _all_set(bitmap: bytearray, first: int, count: int) -> bool:
    return all(present for present, _, _ in _window(bitmap, first, count))
