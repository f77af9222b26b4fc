"""Footer, header, BAT and batmap of one image; each number is checked against the file's size."""

from array import array
from dataclasses import dataclass, field

from vhdtool.errors import UnsupportedImage, damaged
from vhdtool.image.metadata.bat_sort import sort_entries, used_entries
from vhdtool.image.metadata.bounds import end_of_headers
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.storage import Storage
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_checksum, batmap_possible
from vhdtool.vhd.bits import unpack_flags
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, size_text

LARGEST_BAT = 64 << 20
"""Bytes of the largest BAT that is opened for writing: sixteen times that of 2040 GiB."""


class FixedImage(UnsupportedImage):
    """Raised for a fixed disk where an image with a BAT is needed."""


@dataclass(slots=True)
class Metadata:
    """Metadata of an image of any kind. A fixed disk has no header, BAT and layout."""

    footer: Footer
    ends: Ends
    header: Header | None = None
    bat: "array[int]" = field(default_factory=lambda: array("I"))
    batmap: BatmapHeader | None = None
    layout: BlockLayout | None = None

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        return self.footer.current_size


@dataclass(slots=True)
class BlockTables:
    """Metadata of a dynamic or differencing image that is opened for writing. Sectors are of the
    file.
    """

    footer: Footer
    header: Header
    layout: BlockLayout
    bat: "array[int]"
    used: "array[int]"
    """The BAT entries of allocated blocks, in rising order."""
    disjoint: bool
    """Whether no two allocated blocks overlap."""
    raw_bat: bytearray
    """The BAT as it is in the file, padding included."""
    batmap: BatmapHeader | None
    batmap_believed: bool
    """False where the checksum of the batmap is wrong; then `full` is all zeros."""
    full: bytearray
    """A byte for each block: 1 where the batmap says that every sector is present."""
    end_of_headers: int
    file_size: int
    ends: Ends

    @property
    def end(self) -> int:
        """The sector behind the last block, or behind the headers when there is no block."""
        if not self.used:
            return self.end_of_headers
        return max(self.end_of_headers, self.layout.end_sector(self.used[-1]))

    def closed(self, end: int) -> bool:
        """Whether a valid footer at the end of the file stands behind sector `end`."""
        footer = self.ends.footer
        return footer is not None and footer.valid and self.ends.footer_offset >= end * SECTOR


def read_metadata(storage: Storage, need_end_footer: bool = False) -> Metadata:
    """Read footer, header, BAT and the batmap's header (None where its map exceeds the file).

    With `need_end_footer` the footer at the end must be valid, as in a closed image.
    Raises NotAVhd, or CorruptImage where the metadata cannot be used.
    """
    ends = read_ends(storage)
    footer = ends.footer if need_end_footer else ends.best
    if footer is None:
        footer = ends.footer or ends.copy
        if footer is None or need_end_footer:
            raise damaged(storage.name, "no footer at its end")
    return metadata_with(storage, ends, footer)


def metadata_with(storage: Storage, ends: Ends, footer: Footer) -> Metadata:
    """Read the metadata as `read_metadata` does, with a known footer. Raises CorruptImage."""
    return _read(storage, ends, footer)[0]


def read_block_tables(storage: Storage) -> BlockTables:
    """Read the metadata of a dynamic or differencing image in order to write it.

    Raises NotAVhd, CorruptImage, FixedImage, or UnsupportedImage for an image of blktap 0.1 and
    for a BAT of more than LARGEST_BAT bytes.
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
            f"{name}: its bitmaps have the bit order of blktap 0.1, which can only be read; "
            "`vhdtool convert` copies it to an image that can be written"
        )
    metadata, raw = _read(storage, ends, footer, LARGEST_BAT)
    header, layout, bat, batmap = metadata.header, metadata.layout, metadata.bat, metadata.batmap
    assert header is not None
    assert layout is not None
    if len(raw) < header.bat_bytes:
        raise damaged(name, "the file ends within its BAT")
    bits = read_batmap(storage, batmap, header) if batmap is not None else None
    if batmap is None or bits is None:
        batmap, believed = None, True
        full = bytearray(len(bat))
    else:
        believed = _checksum_fits(bits, footer, batmap)
        full = unpack_flags(bits, len(bat)) if believed else bytearray(len(bat))
    file_size, entries = ends.file_size, used_entries(raw, len(bat))
    used, disjoint = sort_entries(entries, layout.total_sectors, file_size // SECTOR)
    end = end_of_headers(footer, header, batmap, file_size)
    return BlockTables(
        footer, header, layout, bat, used, disjoint, bytearray(raw), batmap, believed, full, end,
        file_size, ends,
    )  # fmt: skip


def _read(
    storage: Storage, ends: Ends, footer: Footer, largest_bat: int | None = None
) -> tuple[Metadata, bytes]:
    """(metadata, the BAT as it is in the file). Raises UnsupportedImage for a larger BAT."""
    name = storage.name
    footer.validate(name, "the footer")
    if footer.disk_type == FIXED:
        return Metadata(footer, ends), b""
    header = read_header(storage, footer.data_offset)
    header.validate(name)
    check_table(name, header, footer, ends.file_size)
    if largest_bat is not None and header.bat_bytes > largest_bat:
        raise UnsupportedImage(f"{name}: a BAT of {header.max_entries} entries cannot be served")
    raw = _raw_bat(storage, header)
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    if batmap is not None and not _batmap_fits(batmap, header, ends.file_size):
        # Numbers that cannot be right must not move the computed end of the data.
        batmap = None
    bat = unpack_bat(raw, header.max_entries)
    return Metadata(footer, ends, header, bat, batmap, BlockLayout(header.block_bytes)), raw


def read_header(storage: Storage, offset: int) -> Header:
    """Read the header at byte `offset`, unchecked. Raises CorruptImage when it exceeds the file."""
    if offset + HEADER_SIZE > storage.size():
        raise damaged(storage.name, f"the header at byte {offset} lies outside the file")
    return Header.unpack(storage.pread(offset, HEADER_SIZE))


def check_table(name: str, header: Header, footer: Footer, file_size: int) -> None:
    """Raise CorruptImage unless the BAT is inside the file and large enough for the disk."""
    if header.bat_offset % SECTOR or header.bat_offset + 4 * header.max_entries > file_size:
        raise damaged(
            name,
            f"a BAT of {header.max_entries} entries at byte {header.bat_offset} "
            f"does not fit a file of {size_text(file_size)}",
        )
    need = -(-footer.current_size // header.block_bytes)
    if header.max_entries < need:
        raise damaged(name, f"the disk needs {need} blocks, the BAT has {header.max_entries}")


def read_bat(storage: Storage, header: Header) -> "array[int]":
    """Read the BAT, whose offset is checked already. Raises CorruptImage when it is cut off."""
    return unpack_bat(_raw_bat(storage, header), header.max_entries)


def _raw_bat(storage: Storage, header: Header) -> bytes:
    """All entries in file order, and the padding as far as the file has it."""
    raw = storage.pread(header.bat_offset, header.bat_bytes)
    if len(raw) < 4 * header.max_entries:
        raise damaged(storage.name, "the file ends within its BAT")
    return raw


def read_batmap_header(storage: Storage, header: Header) -> BatmapHeader | None:
    """Read the batmap's header behind the BAT; None where its cookie is missing."""
    raw = storage.pread(header.bat_end, SECTOR)
    if len(raw) < SECTOR:
        return None
    batmap = BatmapHeader.unpack(raw)
    return batmap if batmap.has_cookie else None


def read_batmap(storage: Storage, batmap: BatmapHeader, header: Header) -> bytes | None:
    """Read the batmap's bits, padded to sectors; None where the map exceeds the file."""
    length = batmap_bytes(header.max_entries)
    if not _batmap_fits(batmap, header, storage.size()):
        return None
    raw = storage.pread(batmap.offset, min(length, batmap.sectors * SECTOR))
    return raw if len(raw) >= -(-header.max_entries // 8) else None


def believed_batmap(storage: Storage, metadata: Metadata) -> bytes:
    """Read the batmap's bits; all are clear where the checksum is wrong, as a batmap may lag."""
    header = metadata.header
    if metadata.batmap is None or header is None:
        return b""
    # Read again: header and map must be of the same moment.
    batmap = read_batmap_header(storage, header)
    bits = read_batmap(storage, batmap, header) if batmap is not None else None
    if batmap is None or bits is None:
        return b""
    return bits if _checksum_fits(bits, metadata.footer, batmap) else bytes(len(bits))


def _checksum_fits(bits: bytes, footer: Footer, batmap: BatmapHeader) -> bool:
    return batmap_checksum(bits, footer.current_size, batmap.version) == batmap.checksum


def _batmap_fits(batmap: BatmapHeader, header: Header, file_size: int) -> bool:
    length = batmap.sectors * SECTOR
    return length >= -(-header.max_entries // 8) and batmap.offset + length <= file_size
