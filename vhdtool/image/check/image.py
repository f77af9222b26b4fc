"""Check of one image: compares its structures with each other and with the file."""

from typing import Literal

from vhdtool.errors import UsageError
from vhdtool.image.check.bitmaps import check_batmap, check_bitmaps
from vhdtool.image.check.collector import LIMIT, Collector
from vhdtool.image.check.overlaps import (
    check_entries,
    check_leaks,
    check_overlaps,
    check_regions,
    gaps,
)
from vhdtool.image.check.regions import Region, end_region, locator_regions, table_regions
from vhdtool.image.check.structures import (
    check_fixed,
    check_footers,
    check_header,
    check_locators,
)
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.image.metadata.findings import CheckReport, Finding
from vhdtool.image.metadata.orphans import find_orphans
from vhdtool.image.metadata.placement import Placement
from vhdtool.image.metadata.read import read_bat, read_batmap_header
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import batmap_possible
from vhdtool.vhd.blocks import ALIGN, BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, FIXED, Footer
from vhdtool.vhd.units import SECTOR

__all__ = ["CheckReport", "Finding", "check"]

Mode = Literal["strict", "unclean", "live"]
MODES = ("strict", "unclean", "live")


def check(
    storage: Storage, mode: Mode = "strict", bitmaps: bool = True, limit: int = LIMIT
) -> CheckReport:
    """Check one image (for its parents see image/chain/check.py); writes nothing.

    Modes: "strict" for a closed image; "unclean" for one that crashed (a missing footer at the
    end is no fault); "live" for one in use (its end may move meanwhile). Without `bitmaps` the
    sector bitmaps are not read, which is quick. Of one code at most `limit` findings are listed.
    Raises NotAVhd, or StorageError when the check cannot be done.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
    collector = Collector(mode, limit)
    report = CheckReport(storage.name, mode)
    ends = read_ends(storage)
    footer = check_footers(ends, collector)
    if footer is not None and footer.disk_type == FIXED:
        check_fixed(ends, footer, collector)
    else:
        _check_dynamic(storage, ends, footer, bitmaps, collector, report)
    report.findings = collector.findings()
    report.truncated = collector.truncated()
    return report


def _check_dynamic(
    storage: Storage,
    ends: Ends,
    footer: Footer | None,
    bitmaps: bool,
    collector: Collector,
    report: CheckReport,
) -> None:
    header_and_offset = check_header(storage, footer, ends.file_size, collector)
    if header_and_offset is None:
        return
    header, header_offset = header_and_offset
    layout = BlockLayout(header.block_bytes)
    bat = read_bat(storage, header)
    if footer is None:
        footer = ends.footer or ends.copy or Footer(len(bat) * header.block_bytes)
        need = len(bat)
    else:
        need = layout.blocks_for(footer.current_size)
    if collector.mode == "live":
        # The file grew while the BAT was read: every block in the BAT lies before the end now.
        ends = read_ends(storage)
    placement = Placement(bat, layout, header.bat_offset, ends.file_size, footer.bitmaps_reversed)
    report.blocks = need
    report.allocated = len(placement.sorted_keys) + len(placement.zeroed) + len(placement.outside)
    check_entries(placement, need, collector)
    check_overlaps(placement, collector)
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    regions = table_regions(footer, header, header_offset, batmap)
    if footer.disk_type == DIFFERENCING:
        check_locators(header, ends.file_size, collector)
        regions += locator_regions(header, ends.file_size)
    end = _end_sector(ends)
    check_regions(placement, [*regions, *end_region(ends)], collector)
    bits = check_batmap(storage, header, footer, batmap, collector)
    slack = _slack(storage, footer, collector.mode)
    free = gaps(placement, regions, end)
    # The end of a device holds old data, and that of a live image preallocation.
    searched = free if slack is not None else [gap for gap in free if gap[1] < end]
    report.orphans = find_orphans(storage, placement, searched, bits, need)
    # In a live image the entry may have been written since the BAT was read.
    severity: Literal["info", "unclean"] = "info" if collector.mode == "live" else "unclean"
    for one in report.orphans:
        offset = one.entry * SECTOR
        collector.add("orphan-block", severity, str(one), one.guest, offset, one.sectors)
    if report.orphans:
        owned = [Region("an orphan", one.entry, one.end) for one in report.orphans]
        free = gaps(placement, [*regions, *owned], end)
    check_leaks(placement, free, end, slack, collector)
    # Where nearly all blocks overlap, millions of bitmaps would be read, and prove nothing.
    read_bitmaps = bitmaps and not collector.is_full("block-overlap")
    check_bitmaps(storage, placement, bits, read_bitmaps, collector)


def _slack(storage: Storage, footer: Footer, mode: str) -> int | None:
    """Sectors between the last block and the footer that are no leak; None: any number."""
    if mode == "live" or storage.is_block_device:
        return None
    # blktap puts the footer right behind the last block; Hyper-V leaves 4 KiB and its alignment.
    return 0 if footer.is_tapdisk else 2 * ALIGN - 1


def _end_sector(ends: Ends) -> int:
    if ends.footer is not None or ends.killed:
        return ends.footer_offset // SECTOR
    return ends.file_size // SECTOR
