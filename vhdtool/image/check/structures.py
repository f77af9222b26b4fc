"""Footers and header: is this the disk that it says, and can its tables be found?"""

from dataclasses import replace

from vhdtool.image.metadata.collector import Collector
from vhdtool.image.metadata.ends import Ends
from vhdtool.storage import Storage
from vhdtool.vhd.creators import QEMU, readers_agree, size_for_qemu
from vhdtool.vhd.footer import FIXED, RESERVED_FEATURE, TYPES, VERSION, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import VERSION as HEADER_VERSION
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import MAX_ENTRIES, MAX_SIZE, NO_OFFSET, SECTOR


def check_footers(ends: Ends, found: Collector) -> Footer | None:
    """Judges both footers; returns the one to believe, or None when there is none."""
    best = ends.best
    for footer in (ends.end, ends.copy):
        if footer is not None and footer.poisoned:
            found.corrupt(
                "resize-pending",
                "a resize was interrupted: its journal must be finished or reverted first",
                offset=ends.end_offset if footer is ends.end else 0,
            )
    if best is None and ends.agreed is not None:
        found.corrupt(
            "footers-stale",
            "the footer and its copy are equal, but their checksum is wrong: another tool changed "
            "a field and forgot it, and readers refuse the image",
            offset=ends.end_offset,
        )
        _check_fields(ends.agreed, found)
        return ends.agreed
    if best is None:
        found.corrupt("footer-lost", "no valid footer, neither at the end nor at the start")
        _damaged(ends, found)
        return None
    _check_end(ends, found)
    if best.disk_type != FIXED:
        _check_copy(ends, found)
    _check_fields(best, found)
    return best


def _damaged(ends: Ends, found: Collector) -> None:
    for footer, place, offset in (
        (ends.end, "the footer at the end", ends.end_offset),
        (ends.copy, "the footer's copy at the start", 0),
    ):
        if footer is not None:
            found.corrupt("footer-checksum", f"the checksum of {place} is wrong", offset=offset)


def _check_end(ends: Ends, found: Collector) -> None:
    at = ends.end_offset
    if ends.end is not None:
        if not ends.end.valid:
            found.unclean("footer-checksum", "the checksum of the footer at the end is wrong", at)
        return
    if ends.killed:
        found.open_end("footer-killed", "tapdisk has the image open, or had when it died", at)
    else:
        found.open_end("footer-missing", "no footer at the end: the image was not closed", at)


def _check_copy(ends: Ends, found: Collector) -> None:
    if ends.copy is None:
        found.unclean("footer-copy-missing", "no copy of the footer at the start", 0)
    elif not ends.copy.valid:
        found.unclean("footer-copy-checksum", "the footer's copy has a wrong checksum", 0)
    elif ends.end is not None and ends.end.valid and _differ(ends.end, ends.copy):
        before, after = ends.copy.as_dict(), ends.end.as_dict()
        names = [key for key in before if before[key] != after[key] and key != "checksum"]
        found.unclean(
            "footers-differ",
            f"the footer and its copy differ in {', '.join(names) or 'reserved bytes'}",
            0,
        )


def _differ(end: Footer, copy: Footer) -> bool:
    if end.is_early_tapdisk and copy.hidden:
        copy = replace(copy, hidden=end.hidden)
    return copy.pack() != end.pack()


def _check_fields(footer: Footer, found: Collector) -> None:
    if footer.disk_type not in TYPES:
        found.corrupt("disk-type", f"unknown disk type {footer.disk_type}")
    if footer.version >> 16 != VERSION >> 16:
        found.corrupt("footer-version", f"unknown format version 0x{footer.version:08x}")
    if not footer.features & RESERVED_FEATURE:
        found.info("features", f"features 0x{footer.features:x} lack the bit that is always set")
    size = footer.current_size
    if size == 0:
        found.corrupt("size-zero", "the disk has no size")
    elif size % SECTOR:
        found.unclean("size-odd", f"the size of {size} bytes is no multiple of a sector")
    if size > MAX_SIZE:
        found.info("size-large", f"{size} bytes are more than the 2040 GiB that other tools take")
    if footer.saved not in (0, 1) or footer.hidden not in (0, 1):
        found.info("flags", f"saved is {footer.saved}, hidden is {footer.hidden}: neither 0 nor 1")
    _check_geometry(footer, found)
    _check_readers(footer, found)


def _check_geometry(footer: Footer, found: Collector) -> None:
    """Accepts what any known writer derives from either size; another triple is a fault."""
    geometry, size = footer.geometry, footer.current_size
    accepted = {Geometry.for_size(size), Geometry.for_size(footer.original_size)}
    cylinder = geometry.heads * geometry.sectors * SECTOR
    if geometry in accepted or geometry.is_largest:
        return
    # QEMU enlarges a disk until it is a whole geometry, or rounds the geometry up (force_size).
    if cylinder and abs(geometry.size - size) < cylinder:
        return
    found.unclean("geometry", f"geometry {geometry} does not belong to a disk of {size} bytes")


def _check_readers(footer: Footer, found: Collector) -> None:
    """Two sizes in one footer. Virtual PC and VirtualBox write such images and read them well;
    QEMU never writes one, so that another program changed the size of an image of QEMU's."""
    if readers_agree(footer):
        return
    size = footer.current_size
    text = (
        f"the size field says {size} bytes, but QEMU takes the geometry of this creator's images "
        f"and sees {size_for_qemu(footer)}"
    )
    if footer.creator == QEMU:
        found.unclean("size-disagrees", text)
    else:
        found.info("size-disagrees", text)


def check_header(
    storage: Storage, footer: Footer | None, file_size: int, found: Collector
) -> tuple[Header, int] | None:
    """Judges the header; returns it and its byte offset, or None when the BAT cannot be found."""
    offset = SECTOR
    if footer is not None:
        offset = footer.data_offset
        if offset == NO_OFFSET or offset % SECTOR or offset + HEADER_SIZE > file_size:
            found.corrupt("header-place", f"the header cannot be at byte {offset}")
            offset = SECTOR
    raw = storage.pread(offset, HEADER_SIZE)
    if len(raw) < HEADER_SIZE:
        found.corrupt("header-place", "the file ends before its header does", offset=offset)
        return None
    header = Header.unpack(raw)
    if not header.has_cookie:
        found.corrupt("header-cookie", "no dynamic disk header where it belongs", offset=offset)
        return None
    if not header.checksum_valid:
        found.corrupt("header-checksum", "the header's checksum is wrong", offset=offset)
    if header.version >> 16 != HEADER_VERSION >> 16:
        found.corrupt("header-version", f"unknown header version 0x{header.version:08x}")
    if header.next_offset != NO_OFFSET:
        found.info("header-next", f"the header's unused offset is {header.next_offset}", offset)
    if not header.block_size_valid:
        found.corrupt("block-size", f"a block cannot have {header.block_bytes} bytes")
        return None
    if _table_fits(header, footer, file_size, found):
        return header, offset
    return None


def _table_fits(header: Header, footer: Footer | None, file_size: int, found: Collector) -> bool:
    at = header.bat_offset
    if header.max_entries > MAX_ENTRIES:
        found.corrupt("bat-too-large", f"a BAT of {header.max_entries} entries is absurd")
        return False
    if at % SECTOR or at + 4 * header.max_entries > file_size:
        found.corrupt(
            "bat-place",
            f"a BAT of {header.max_entries} entries at byte {at} does not fit this file",
        )
        return False
    if footer is not None:
        need = -(-footer.current_size // header.block_bytes)
        if header.max_entries < need:
            found.corrupt(
                "bat-too-small",
                f"the disk needs {need} blocks, but the BAT has only {header.max_entries}: "
                f"the end of the disk cannot be reached",
                sectors=(
                    header.max_entries * header.block_bytes // SECTOR,
                    (footer.current_size - header.max_entries * header.block_bytes) // SECTOR,
                ),
            )
    return True


def check_fixed(ends: Ends, footer: Footer, found: Collector) -> None:
    """A fixed disk is its data, then the footer, and nothing else."""
    data = ends.end_offset if ends.end is not None else ends.file_size
    if data < footer.current_size:
        found.corrupt(
            "fixed-too-short",
            f"the file holds {data} bytes of a disk of {footer.current_size}",
            offset=data,
            sectors=(data // SECTOR, -(-(footer.current_size - data) // SECTOR)),
        )
    elif data - footer.current_size >= SECTOR:
        found.unclean(
            "leaked-tail",
            f"{data - footer.current_size} bytes between the disk's end and the footer",
            footer.current_size,
        )
