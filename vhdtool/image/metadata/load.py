"""The metadata of an image that is opened for writing, checked before anything relies on it."""

from array import array
from dataclasses import dataclass

from vhdtool.errors import UnsupportedImage, damaged
from vhdtool.image.metadata.bat_sort import in_order, used_places
from vhdtool.image.metadata.bounds import end_of_headers
from vhdtool.image.metadata.read import (
    Ends,
    check_table,
    read_batmap,
    read_batmap_header,
    read_ends,
    read_header,
)
from vhdtool.storage import Storage
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.batmap import (
    BatmapHeader,
    batmap_checksum,
    batmap_possible,
)
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR

LARGEST_BAT = 64 << 20
"""Bytes; sixteen times what a disk of 2040 GiB needs. A larger one is a lie or a mistake."""


class FixedImage(UnsupportedImage):
    """A fixed disk: image/disk/flat.py opens it."""


@dataclass(slots=True)
class Opened:
    """One read of an image's metadata. Sectors are of the file."""

    footer: Footer
    header: Header
    layout: BlockLayout
    bat: "array[int]"
    used: "array[int]"
    """The places that the BAT names, in rising order."""
    apart: bool
    """Whether no two of them overlap."""
    raw_bat: bytearray
    """As it is in the file, padding included."""
    batmap: BatmapHeader | None
    batmap_believed: bool
    """False where its checksum is wrong; then `full` is empty."""
    full: bytearray
    """A byte for each block: 1 where the batmap says that every sector is present."""
    end_of_headers: int
    file_size: int
    ends: Ends

    @property
    def end(self) -> int:
        """The sector behind the last block, or behind the headers when there is none."""
        if not self.used:
            return self.end_of_headers
        return max(self.end_of_headers, self.layout.end_sector(self.used[-1]))

    def closed(self, end: int) -> bool:
        """Whether a valid footer ends the file, behind all data (`end` is a sector)."""
        footer = self.ends.end
        return footer is not None and footer.valid and self.ends.end_offset >= end * SECTOR


def read_opened(storage: Storage) -> Opened:
    """Reads footer, header, BAT and batmap of a dynamic or differencing image.

    Raises NotAVhd, CorruptImage, FixedImage, or UnsupportedImage for an absurd BAT.
    """
    name = storage.name
    ends = read_ends(storage)
    footer = ends.best
    if footer is None:
        raise damaged(name, "neither footer is valid")
    footer.validate(name, "the footer")
    if footer.disk_type == FIXED:
        raise FixedImage(f"{name}: a fixed disk has no blocks to allocate")
    if footer.bitmaps_reversed:
        raise UnsupportedImage(
            f"{name}: blktap 0.1 wrote it, whose bitmaps no other tool writes; "
            "`vhdtool convert` makes an image of today from it"
        )
    header = read_header(storage, footer.data_offset)
    header.validate(name)
    check_table(name, header, footer, ends.file_size)
    if header.bat_bytes > LARGEST_BAT:
        raise UnsupportedImage(f"{name}: a BAT of {header.max_entries} entries cannot be served")
    raw = bytearray(storage.pread(header.bat_offset, header.bat_bytes))
    if len(raw) < header.bat_bytes:
        raise damaged(name, "the file ends within its BAT")
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    bits = read_batmap(storage, batmap, header) if batmap is not None else None
    if bits is None:
        # No batmap, or one whose numbers make no sense: it says nothing, and is left alone.
        batmap = None
    layout = BlockLayout(header.block_bytes)
    used, apart = in_order(
        used_places(raw, header.max_entries), layout.total_sectors, ends.file_size // SECTOR
    )
    bat = unpack_bat(raw, header.max_entries)
    full = bytearray(header.max_entries)
    believed = _believed(bits, footer, batmap)
    if believed and bits is not None:
        full = unpack_flags(bits, header.max_entries)
    return Opened(
        footer,
        header,
        layout,
        bat,
        used,
        apart,
        raw,
        batmap,
        believed,
        full,
        end_of_headers(footer, header, batmap, ends.file_size),
        ends.file_size,
        ends,
    )


def _believed(bits: bytes | None, footer: Footer, batmap: BatmapHeader | None) -> bool:
    """A batmap is a shortcut: one whose checksum is wrong says nothing about any block."""
    if batmap is None or bits is None:
        return True
    return batmap_checksum(bits, footer.current_size, batmap.version) == batmap.checksum


def unpack_flags(bits: bytes, count: int) -> bytearray:
    """A byte (0 or 1) for each of the first `count` bits.

    >>> list(unpack_flags(bytes([0b10100000]), 4))
    [1, 0, 1, 0]
    """
    digits = format(int.from_bytes(b"\1" + bits, "big"), "b")[1 : 1 + count]
    return bytearray(digits.encode().translate(_DIGIT_TO_FLAG)).ljust(count, b"\0")


def pack_flags(flags: bytes | bytearray, length: int) -> bytes:
    """The bits for `unpack_flags`, in `length` bytes; what does not fit is left out.

    >>> pack_flags(bytes([1, 0, 1]), 2).hex()
    'a000'
    """
    digits = flags.translate(_FLAG_TO_DIGIT)[: length * 8].ljust(length * 8, b"0")
    return int(digits, 2).to_bytes(length, "big")


_DIGIT_TO_FLAG = bytes(1 if value == ord("1") else 0 for value in range(256))
_FLAG_TO_DIGIT = bytes(ord("1") if value else ord("0") for value in range(256))
