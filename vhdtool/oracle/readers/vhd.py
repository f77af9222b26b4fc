"""A reader of VHD and raw images, written from the format alone.

It shares no code with the image library or the shim, so that a defect there is not repeated here.
tests/interop compares it with libvhdi and qemu-img. Source of the layout: Microsoft's "Virtual
Hard Disk Image Format Specification" 1.0. All integers on disk are big-endian.

A sector of a dynamic disk is present if its block has a BAT entry and its bit in the block's bitmap
is set; every other sector reads as zeros.
"""

import re
import struct
from collections.abc import Iterator

from vhdtool.errors import CorruptImage, NotAVhd
from vhdtool.oracle.readers.image_view import Extent, View, clip

SECTOR = 512
UNUSED = 0xFFFFFFFF
CHUNK = 1 << 20
"""Bytes read at once: bounds the memory for any image."""
MAX_ENTRIES = 1 << 23
_ZEROS = bytes(CHUNK)
_ONES, _NULLS = re.compile("1+"), re.compile("0+")
FIXED, DYNAMIC = 2, 3


class RawReader:
    """A raw image: the file is the disk."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.disk_sectors = view.size() // SECTOR

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """(first sector, bytes) of all data in rising order; everything else reads as zeros."""
        yield from data_chunks(self.view, 0, [(0, self.disk_sectors)])

    def locate(self, sector: int) -> int | None:
        """Offset of a sector in the file; None if it is not present and reads as zeros."""
        return sector * SECTOR if sector < self.disk_sectors else None


class FixedReader(RawReader):
    """A fixed VHD: the disk, then the footer."""

    def __init__(self, view: View, sectors: int) -> None:
        super().__init__(view)
        self.disk_sectors = min(sectors, (view.size() - SECTOR) // SECTOR)


class DynamicReader:
    """A dynamic VHD. Raises CorruptImage if header or BAT cannot be used.

    `blocks`: block number -> first sector of its bitmap in the file.
    """

    def __init__(self, view: View, disk_sectors: int, header_offset: int) -> None:
        self.view = view
        self.disk_sectors = disk_sectors
        header = view.pread(header_offset, 1024)
        if len(header) < 1024 or header[:8] != b"cxsparse":
            raise CorruptImage(f"{view.name}: no dynamic header at byte {header_offset}")
        bat_offset, entries, block_bytes = struct.unpack_from(">Q4xII", header, 16)
        self.bat_offset: int = bat_offset
        if block_bytes < SECTOR or block_bytes & (block_bytes - 1) or block_bytes > 1 << 30:
            raise CorruptImage(f"{view.name}: the header's block size is {block_bytes} bytes")
        self.block_sectors: int = block_bytes // SECTOR
        needed = -(-disk_sectors // self.block_sectors)
        if not needed <= entries <= MAX_ENTRIES:
            raise CorruptImage(f"{view.name}: the BAT has {entries} entries for {needed} blocks")
        bat = view.pread(self.bat_offset, needed * 4)
        if len(bat) < needed * 4:
            raise CorruptImage(f"{view.name}: the BAT at byte {self.bat_offset} is cut off")
        table = struct.unpack(f">{needed}I", bat)
        self.blocks: dict[int, int] = {block: at for block, at in enumerate(table) if at != UNUSED}
        self.bitmap_bytes = -(-self.block_sectors // 8 // SECTOR) * SECTOR or SECTOR
        self._bitmaps: dict[int, bytes] = {}

    def bitmap(self, block: int) -> bytes:
        """The bitmap of an allocated block; bits after the end of the file count as clear."""
        if block not in self._bitmaps:
            data = self.view.pread(self.blocks[block] * SECTOR, self.bitmap_bytes)
            self._bitmaps[block] = data.ljust(self.bitmap_bytes, b"\0")
        return self._bitmaps[block]

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """(first sector, bytes) of present data in rising order; everything else reads as zeros."""
        return self._stored(_ONES)

    def hidden(self) -> Iterator[tuple[int, bytes]]:
        """(first sector, bytes) of data under clear bits, which the disk does not show."""
        return self._stored(_NULLS)

    def _stored(self, wanted: re.Pattern[str]) -> Iterator[tuple[int, bytes]]:
        for block in self.blocks:
            first = block * self.block_sectors
            count = min(self.block_sectors, self.disk_sectors - first)
            bits = f"{int.from_bytes(self.bitmap(block)):0{self.bitmap_bytes * 8}b}"
            runs = [run.span() for run in wanted.finditer(bits, 0, count)]
            start = self.blocks[block] * SECTOR + self.bitmap_bytes
            for sector, data in data_chunks(self.view, start, runs):
                yield first + sector, data

    def locate(self, sector: int) -> int | None:
        """Offset of a sector in the file; None if it is not present and reads as zeros."""
        block, inside = divmod(sector, self.block_sectors)
        if block not in self.blocks or not self.bitmap(block)[inside // 8] & 0x80 >> inside % 8:
            return None
        return self.blocks[block] * SECTOR + self.bitmap_bytes + inside * SECTOR


Reader = RawReader | DynamicReader


def data_chunks(view: View, start: int, runs: list[Extent]) -> Iterator[tuple[int, bytes]]:
    """(sector, bytes) of data in sector runs, counted from byte `start`; holes are left out."""
    extents = view.extents()
    for low, high in runs:
        done = low
        for data_start, data_end in clip(extents, start + low * SECTOR, start + high * SECTOR):
            first = max((data_start - start) // SECTOR, done)
            done = min(-(-(data_end - start) // SECTOR), high)
            for sector in range(first, done, CHUNK // SECTOR):
                length = min(CHUNK, (done - sector) * SECTOR)
                data = view.pread(start + sector * SECTOR, length)
                if data and data != _ZEROS[: len(data)]:
                    # A file that ends inside a sector: the rest of it reads as zeros.
                    yield sector, data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")


def open_reader(view: View) -> Reader:
    """The disk inside a VHD file.

    Raises NotAVhd without a footer at either end, and CorruptImage if header or BAT cannot be used
    or the disk type is not fixed or dynamic.
    """
    footer = _footer(view)
    data_offset, size, kind = struct.unpack_from(">16xQ24xQ4xI", footer)
    if kind == FIXED:
        return FixedReader(view, size // SECTOR)
    if kind != DYNAMIC:
        raise CorruptImage(f"{view.name}: disk type {kind} is neither fixed nor dynamic")
    return DynamicReader(view, size // SECTOR, data_offset)


def _footer(view: View) -> bytes:
    """The footer at the end, or its copy at the start if that is not valid."""
    for offset in (max(view.size() - SECTOR, 0), 0):
        footer = view.pread(offset, SECTOR)
        if len(footer) == SECTOR and footer[:8] == b"conectix":
            claimed = struct.unpack_from(">I", footer, 64)[0]
            if claimed == ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF:
                return footer
    raise NotAVhd(f"{view.name}: no valid footer at its end or its start")
