"""Check of footers, header, parent locators and the extent of a fixed disk."""

from dataclasses import replace

from vhdtool.image.check.collector import Collector
from vhdtool.image.check.regions import locator_fault, used_locators
from vhdtool.image.metadata.ends import Ends
from vhdtool.storage import Storage
from vhdtool.vhd.creators import QEMU, readers_agree, size_for_qemu
from vhdtool.vhd.footer import FIXED, RESERVED_FEATURE, TYPES, VERSION, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import VERSION as HEADER_VERSION
from vhdtool.vhd.header import Header
from vhdtool.vhd.locators import KNOWN_CODES
from vhdtool.vhd.units import MAX_ENTRIES, MAX_SIZE, NO_OFFSET, SECTOR, size_text


def check_footers(ends: Ends, collector: Collector) -> Footer | None:
    """Check both footers; returns the one to believe, or None where none is valid."""
    best = ends.best
    for footer in (ends.footer, ends.copy):
        if footer is not None and footer.poisoned:
            collector.corrupt(
                "resize-pending",
                "a resize was interrupted: its journal must be finished or reverted first",
                offset=ends.footer_offset if footer is ends.footer else 0,
            )
    if best is None and ends.agreed is not None:
        collector.corrupt(
            "footers-stale",
            "the footer and its copy are equal, but their checksum is wrong: another tool changed "
            "a field and did not update the checksum, and readers refuse the image",
            offset=ends.footer_offset,
        )
        _check_fields(ends.agreed, collector)
        return ends.agreed
    if best is None:
        collector.corrupt("footer-lost", "no valid footer, neither at the end nor at the start")
        _check_damaged(ends, collector)
        return None
    _check_end(ends, collector)
    if best.disk_type != FIXED:
        _check_copy(ends, collector)
    _check_fields(best, collector)
    return best


def _check_damaged(ends: Ends, collector: Collector) -> None:
    for footer, name, offset in (
        (ends.footer, "the footer at the end", ends.footer_offset),
        (ends.copy, "the footer's copy at the start", 0),
    ):
        if footer is not None:
            collector.corrupt("footer-checksum", f"the checksum of {name} is wrong", offset=offset)


def _check_end(ends: Ends, collector: Collector) -> None:
    offset = ends.footer_offset
    if ends.footer is not None:
        if not ends.footer.valid:
            text = "the checksum of the footer at the end is wrong"
            collector.unclean("footer-checksum", text, offset)
    elif ends.killed:
        text = "tapdisk has the image open, or died while it had it open"
        collector.unclosed("footer-killed", text, offset)
    else:
        collector.unclosed(
            "footer-missing", "no footer at the end: the image was not closed", offset
        )


def _check_copy(ends: Ends, collector: Collector) -> None:
    if ends.copy is None:
        collector.unclean("footer-copy-missing", "no copy of the footer at the start", 0)
    elif not ends.copy.valid:
        collector.unclean("footer-copy-checksum", "the footer's copy has a wrong checksum", 0)
    elif ends.footer is not None and ends.footer.valid and _differ(ends.footer, ends.copy):
        before, after = ends.copy.as_dict(), ends.footer.as_dict()
        names = [key for key in before if before[key] != after[key] and key != "checksum"]
        collector.unclean(
            "footers-differ",
            f"the footer and its copy differ in {', '.join(names) or 'reserved bytes'}",
            0,
        )


def _differ(end: Footer, copy: Footer) -> bool:
    if end.is_early_tapdisk and copy.hidden:
        copy = replace(copy, hidden=end.hidden)
    return copy.pack() != end.pack()


def _check_fields(footer: Footer, collector: Collector) -> None:
    if footer.disk_type not in TYPES:
        collector.corrupt("disk-type", f"unknown disk type {footer.disk_type}")
    if footer.version >> 16 != VERSION >> 16:
        collector.corrupt("footer-version", f"unknown format version 0x{footer.version:08x}")
    if not footer.features & RESERVED_FEATURE:
        collector.info(
            "features", f"features 0x{footer.features:x} lack the bit that is always set"
        )
    size = footer.current_size
    if size == 0:
        collector.corrupt("size-zero", "the disk has no size")
    elif size % SECTOR:
        collector.unclean("size-odd", f"the size of {size_text(size)} is no multiple of a sector")
    if size > MAX_SIZE:
        collector.info(
            "size-large", f"{size_text(size)} is more than the 2040 GiB that other tools take"
        )
    if footer.saved not in (0, 1) or footer.hidden not in (0, 1):
        collector.info(
            "flags", f"saved is {footer.saved}, hidden is {footer.hidden}: neither 0 nor 1"
        )
    _check_geometry(footer, collector)
    _check_readers(footer, collector)


def _check_geometry(footer: Footer, collector: Collector) -> None:
    """Accept the geometry that any known writer derives from either size."""
    geometry, size = footer.geometry, footer.current_size
    accepted = {Geometry.for_size(size), Geometry.for_size(footer.original_size)}
    cylinder = geometry.heads * geometry.sectors * SECTOR
    if geometry in accepted or geometry.is_largest:
        return
    # QEMU enlarges a disk until it is a whole geometry, or rounds the geometry up (force_size).
    if cylinder and abs(geometry.size - size) < cylinder:
        return
    collector.unclean(
        "geometry", f"geometry {geometry} does not belong to a disk of {size_text(size)}"
    )


def _check_readers(footer: Footer, collector: Collector) -> None:
    """Check that size field and geometry give the same size.

    Virtual PC and VirtualBox write and read images in which they differ. QEMU never writes one:
    another program changed the size of such an image.
    """
    if readers_agree(footer):
        return
    size = footer.current_size
    text = (
        f"the size field says {size_text(size)}, but QEMU takes the geometry of this creator's "
        f"images and sees {size_text(size_for_qemu(footer))}"
    )
    if footer.creator == QEMU:
        collector.unclean("size-disagrees", text)
    else:
        collector.info("size-disagrees", text)


def check_header(
    storage: Storage, footer: Footer | None, file_size: int, collector: Collector
) -> tuple[Header, int] | None:
    """Check the header; returns it and its byte offset, or None where the BAT is out of reach."""
    offset = SECTOR
    if footer is not None:
        offset = footer.data_offset
        if offset == NO_OFFSET or offset % SECTOR or offset + HEADER_SIZE > file_size:
            collector.corrupt("header-place", f"the header cannot be at byte {offset}")
            offset = SECTOR
    raw = storage.pread(offset, HEADER_SIZE)
    if len(raw) < HEADER_SIZE:
        collector.corrupt("header-place", "the file ends before its header does", offset=offset)
        return None
    header = Header.unpack(raw)
    if not header.has_cookie:
        text = "no dynamic disk header where the footer says that it is"
        collector.corrupt("header-cookie", text, offset=offset)
        return None
    if not header.checksum_valid:
        collector.corrupt("header-checksum", "the header's checksum is wrong", offset=offset)
    if header.version >> 16 != HEADER_VERSION >> 16:
        collector.corrupt("header-version", f"unknown header version 0x{header.version:08x}")
    if header.next_offset != NO_OFFSET:
        collector.info("header-next", f"the header's unused offset is {header.next_offset}", offset)
    if not header.block_size_valid:
        collector.corrupt("block-size", f"a block cannot have {size_text(header.block_bytes)}")
        return None
    if _table_fits(header, footer, file_size, collector):
        return header, offset
    return None


def _table_fits(
    header: Header, footer: Footer | None, file_size: int, collector: Collector
) -> bool:
    offset = header.bat_offset
    if header.max_entries > MAX_ENTRIES:
        text = f"a BAT of {header.max_entries} entries is too large (at most {MAX_ENTRIES})"
        collector.corrupt("bat-too-large", text)
        return False
    if offset % SECTOR or offset + 4 * header.max_entries > file_size:
        collector.corrupt(
            "bat-place",
            f"a BAT of {header.max_entries} entries at byte {offset} does not fit this file",
        )
        return False
    if footer is not None:
        need = -(-footer.current_size // header.block_bytes)
        if header.max_entries < need:
            collector.corrupt(
                "bat-too-small",
                f"the disk needs {need} blocks, but the BAT has only {header.max_entries}: "
                f"the end of the disk cannot be reached",
                sectors=(
                    header.max_entries * header.block_bytes // SECTOR,
                    (footer.current_size - header.max_entries * header.block_bytes) // SECTOR,
                ),
            )
    return True


def check_locators(header: Header, file_size: int, collector: Collector) -> None:
    """Check code, offset and length of each parent locator."""
    for name, locator in used_locators(header):
        if locator.code not in KNOWN_CODES:
            collector.info("locator-code", f"{name} has the unknown code {locator.code!r}")
        fault = locator_fault(locator, file_size)
        if fault is not None:
            collector.corrupt("locator", f"{name} {fault}", offset=locator.offset)


def check_fixed(ends: Ends, footer: Footer, collector: Collector) -> None:
    """Check that a fixed disk is its data, then the footer, and nothing else."""
    data = ends.footer_offset if ends.footer is not None else ends.file_size
    if data < footer.current_size:
        collector.corrupt(
            "fixed-too-short",
            f"the file holds {size_text(data)} of a disk of {size_text(footer.current_size)}",
            offset=data,
            sectors=(data // SECTOR, -(-(footer.current_size - data) // SECTOR)),
        )
    elif data - footer.current_size >= SECTOR:
        collector.unclean(
            "leaked-tail",
            f"{size_text(data - footer.current_size)} between the disk's end and the footer",
            footer.current_size,
        )
