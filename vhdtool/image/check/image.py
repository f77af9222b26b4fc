"""Is an image what it says? Every finding with code, place and meaning."""

from typing import Literal

from vhdtool.errors import UsageError
from vhdtool.image.check.bitmaps import check_batmap, check_bitmaps
from vhdtool.image.check.locators import locator_regions
from vhdtool.image.check.overlaps import (
    check_entries,
    check_leaks,
    check_overlaps,
    check_regions,
    gaps,
)
from vhdtool.image.check.regions import Region, end_region, table_regions
from vhdtool.image.check.structures import check_fixed, check_footers, check_header
from vhdtool.image.metadata.collector import LIMIT, Collector
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.image.metadata.findings import CheckReport, Finding
from vhdtool.image.metadata.orphans import check_orphans
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
    """Checks one image (not its parents: see image/chain/open.py) and writes nothing.

    Modes: "strict" for a closed image; "unclean" for one that crashed (a missing footer at the
    end is no fault); "live" for one in use (its end may move meanwhile). Without `bitmaps` only
    the batmap is believed, which is quick. Of one code at most `limit` findings are kept.
    Raises NotAVhd, or StorageError when the check cannot be done.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
    found = Collector(mode, limit)
    report = CheckReport(storage.name, mode)
    ends = read_ends(storage)
    footer = check_footers(ends, found)
    if footer is not None and footer.disk_type == FIXED:
        check_fixed(ends, footer, found)
    else:
        _check_dynamic(storage, ends, footer, bitmaps, found, report)
    report.findings = found.findings()
    report.left_out = found.left_out()
    return report


def _check_dynamic(
    storage: Storage,
    ends: Ends,
    footer: Footer | None,
    bitmaps: bool,
    found: Collector,
    report: CheckReport,
) -> None:
    placed = check_header(storage, footer, ends.file_size, found)
    if placed is None:
        return
    header, header_at = placed
    layout = BlockLayout(header.block_bytes)
    bat = read_bat(storage, header)
    if footer is None:
        footer = ends.end or ends.copy or Footer(len(bat) * header.block_bytes)
        need = len(bat)
    else:
        need = layout.blocks_for(footer.current_size)
    if found.mode == "live":
        # The end moved on while the table was read; a footer that is there now was there then.
        ends = read_ends(storage)
    place = Placement(bat, layout, header.bat_offset, ends.file_size, footer.bitmaps_reversed)
    report.blocks = need
    report.allocated = len(place.keys) + len(place.zeroed) + len(place.outside)
    check_entries(place, need, found)
    check_overlaps(place, found)
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    regions = table_regions(footer, header, header_at, batmap)
    if footer.disk_type == DIFFERENCING:
        regions += locator_regions(header, ends.file_size, found)
    end = _end_sector(ends)
    check_regions(place, [*regions, *end_region(ends)], found)
    bits = check_batmap(storage, header, footer, batmap, found)
    slack = _slack(storage, footer, found.mode)
    free = gaps(place, regions, end)
    # The end of a device has what was on it before, and that of a live image blocks to come.
    behind = free if slack is not None else [gap for gap in free if gap[1] < end]
    report.orphans = check_orphans(storage, place, behind, bits, need, found)
    if report.orphans:
        owned = [Region("an orphan", one.entry, one.end) for one in report.orphans]
        free = gaps(place, [*regions, *owned], end)
    check_leaks(free, end, slack, found)
    # Bitmaps of a table that is nothing but overlaps prove nothing, and there are millions.
    check_bitmaps(storage, place, bits, bitmaps and not found.is_full("block-overlap"), found)


def _slack(storage: Storage, footer: Footer, mode: str) -> int | None:
    """Sectors between the last block and the footer that are no leak."""
    if mode == "live" or storage.is_block_device:
        return None
    # blktap puts the footer right behind the last block; Hyper-V leaves 4 KiB and its alignment.
    return 0 if footer.is_tapdisk else 2 * ALIGN - 1


def _end_sector(ends: Ends) -> int:
    if ends.end is not None or ends.killed:
        return ends.end_offset // SECTOR
    return ends.file_size // SECTOR
