"""Reading the metadata of one image, with every number checked against the file's size."""

from array import array
from dataclasses import dataclass, field, replace

from vhdtool.errors import NotAVhd, damaged
from vhdtool.storage import Storage
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_checksum, batmap_possible
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import FIXED, SHORT, Footer
from vhdtool.vhd.header import COOKIE as HEADER_COOKIE
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import KILLED, SECTOR

HEADER_PLACE = SECTOR
"""Where the header stands in every image that a known creator wrote."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a file: the footer at its end and the copy at its start, as they are.

    A footer is None where there is no cookie; it may be invalid. `end_offset` is the byte where
    the footer at the end begins (the last 512 bytes when there is none).
    """

    file_size: int
    end: Footer | None
    copy: Footer | None
    end_offset: int
    killed: bool
    header_seen: bool

    @property
    def best(self) -> Footer | None:
        """The valid footer to believe: the one at the end, else the copy."""
        end, copy = self.end, self.copy
        if end is None or not end.valid:
            return copy if copy is not None and copy.valid else None
        if end.is_early_tapdisk and copy is not None and copy.valid and copy.hidden != end.hidden:
            # Only the copy says whether such an image is hidden.
            return Footer.unpack(replace(end, hidden=copy.hidden).pack())
        return end

    @property
    def agreed(self) -> Footer | None:
        """The footer that both ends have, equal to the last byte but both with a stale checksum.

        Two copies of one mistake are evidence: some tool changed a field and forgot the checksum.
        The footer that is returned has the right one.
        """
        end, copy = self.end, self.copy
        if end is None or copy is None or end.valid or end.poisoned or end.disk_type == FIXED:
            return None
        same = end.pack() == copy.pack() and end.checksum == copy.checksum
        return Footer.unpack(end.pack()) if same else None


def read_ends(storage: Storage) -> Ends:
    """Looks at both ends. Raises NotAVhd when nothing there shows a VHD."""
    size = storage.size()
    if size < SHORT:
        raise NotAVhd(f"{storage.name}: {size} bytes are too few for a VHD")
    start = storage.pread(0, HEADER_PLACE + HEADER_SIZE)
    tail_at = max(0, size - SECTOR)
    tail = storage.pread(tail_at, SECTOR)
    end = _footer(tail)
    end_at = tail_at
    if end is None and size % SECTOR == SHORT:
        end = _footer(tail[-SHORT:])
        end_at = size - SHORT if end is not None else tail_at
    copy = _footer(start) if end_at > 0 else None
    # A fixed disk starts with guest data, and a guest may keep a VHD there.
    if end is not None and end.valid and end.disk_type == FIXED:
        copy = None
    if copy is not None and copy.valid and copy.disk_type == FIXED:
        copy = None
    header_seen = start[HEADER_PLACE : HEADER_PLACE + 8] == HEADER_COOKIE
    if end is None and copy is None and not header_seen:
        # Few files need it: not loaded for images.
        from vhdtool.image.metadata.signatures import description

        raise NotAVhd(
            f"{storage.name}: no VHD (neither a footer nor a dynamic disk header); "
            f"{description(storage)}"
        )
    return Ends(size, end, copy, end_at, tail == KILLED, header_seen)


def _footer(raw: bytes) -> Footer | None:
    if len(raw) < SHORT:
        return None
    footer = Footer.unpack(raw)
    return footer if footer.has_cookie else None


@dataclass(slots=True)
class Metadata:
    """What a reader needs of an image. A fixed disk has no header, BAT and layout."""

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


def read_metadata(storage: Storage, need_end_footer: bool = False) -> Metadata:
    """Reads footer, header, BAT and the batmap's header (None where it leads out of the file).

    With `need_end_footer` the footer at the end must be whole, as in a closed image.
    Raises NotAVhd, or CorruptImage where the metadata cannot be used.
    """
    ends = read_ends(storage)
    footer = ends.end if need_end_footer else ends.best
    if footer is None:
        footer = ends.end or ends.copy
        if footer is None or need_end_footer:
            raise damaged(storage.name, "no footer at its end")
    return metadata_with(storage, ends, footer)


def metadata_with(storage: Storage, ends: Ends, footer: Footer) -> Metadata:
    """As `read_metadata`, with a footer that is known already. Raises CorruptImage."""
    footer.validate(storage.name, "the footer")
    if footer.disk_type == FIXED:
        return Metadata(footer, ends)
    header = read_header(storage, footer.data_offset)
    header.validate(storage.name)
    check_table(storage.name, header, footer, ends.file_size)
    bat = read_bat(storage, header)
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    if batmap is not None and not _batmap_fits(batmap, header, ends.file_size):
        # Its numbers must not move anybody's idea of where the data ends.
        batmap = None
    return Metadata(footer, ends, header, bat, batmap, BlockLayout(header.block_bytes))


def read_header(storage: Storage, offset: int) -> Header:
    """The header at byte `offset`, unchecked. Raises CorruptImage when it is outside the file."""
    if offset + HEADER_SIZE > storage.size():
        raise damaged(storage.name, f"the header at byte {offset} lies outside the file")
    return Header.unpack(storage.pread(offset, HEADER_SIZE))


def check_table(name: str, header: Header, footer: Footer, file_size: int) -> None:
    """Raises CorruptImage unless the BAT is inside the file and large enough for the disk."""
    if header.bat_offset % SECTOR or header.bat_offset + 4 * header.max_entries > file_size:
        raise damaged(
            name,
            f"a BAT of {header.max_entries} entries at byte {header.bat_offset} "
            f"does not fit a file of {file_size} bytes",
        )
    need = -(-footer.current_size // header.block_bytes)
    if header.max_entries < need:
        raise damaged(name, f"the disk needs {need} blocks, the BAT has {header.max_entries}")


def read_bat(storage: Storage, header: Header) -> "array[int]":
    """The BAT; its place must have been checked. Raises CorruptImage when it is cut off."""
    raw = storage.pread(header.bat_offset, 4 * header.max_entries)
    if len(raw) < 4 * header.max_entries:
        raise damaged(storage.name, "the file ends within its BAT")
    return unpack_bat(raw, header.max_entries)


def read_batmap_header(storage: Storage, header: Header) -> BatmapHeader | None:
    """The batmap's header behind the BAT, or None where its cookie is not there."""
    raw = storage.pread(header.bat_end, SECTOR)
    if len(raw) < SECTOR:
        return None
    batmap = BatmapHeader.unpack(raw)
    return batmap if batmap.has_cookie else None


def read_batmap(storage: Storage, batmap: BatmapHeader, header: Header) -> bytes | None:
    """The map's bits, padded to sectors, or None where the map lies outside the file."""
    length = batmap_bytes(header.max_entries)
    if not _batmap_fits(batmap, header, storage.size()):
        return None
    raw = storage.pread(batmap.offset, min(length, batmap.sectors * SECTOR))
    return raw if len(raw) >= -(-header.max_entries // 8) else None


def believed_batmap(storage: Storage, metadata: Metadata) -> bytes:
    """The map's bits; none set where its checksum is wrong: it may always say less."""
    header = metadata.header
    if metadata.batmap is None or header is None:
        return b""
    # As it is now, with the checksum that goes with it.
    batmap = read_batmap_header(storage, header)
    bits = read_batmap(storage, batmap, header) if batmap is not None else None
    if batmap is None or bits is None:
        return b""
    if batmap_checksum(bits, metadata.size, batmap.version) != batmap.checksum:
        return bytes(len(bits))
    return bits


def _batmap_fits(batmap: BatmapHeader, header: Header, file_size: int) -> bool:
    length = batmap.sectors * SECTOR
    return length >= -(-header.max_entries // 8) and batmap.offset + length <= file_size
