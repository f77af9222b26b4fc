"""Ownership of the sectors of a file: no two structures share one, and none is leaked."""

from bisect import bisect_left

from vhdtool.image.check.collector import Collector
from vhdtool.image.check.regions import Region
from vhdtool.image.metadata.placement import BLOCK_BITS, BLOCK_MASK, Placement
from vhdtool.ranges import merge, subtract
from vhdtool.vhd.blocks import ALIGN
from vhdtool.vhd.units import SECTOR, UNUSED


def check_entries(placement: Placement, need: int, collector: Collector) -> None:
    """Check for entries that lie outside the file, and for blocks behind the end of the disk."""
    sectors = placement.layout.sectors
    for first, end in merge((block, block + 1) for block in placement.zeroed):
        count = end - first
        collector.corrupt(
            "bat-zeroed",
            f"{count} BAT entries from block {first} are zero: the BAT was overwritten",
            first,
            placement.bat_offset + 4 * first,
            (first * sectors, count * sectors),
        )
    for block in placement.outside:
        entry = placement.bat[block]
        code = "bat-past-end"
        text = f"is behind the end of the file ({placement.file_sectors} sectors)"
        if entry + placement.layout.total_sectors > UNUSED:
            code, text = "bat-wraps", "would end beyond the largest sector number of 32 bits"
        collector.corrupt(
            code,
            f"block {block} at sector {entry} {text}",
            block,
            placement.bat_offset + 4 * block,
            (block * sectors, sectors),
        )
    for key in placement.sorted_keys:
        block = key & BLOCK_MASK
        if block >= need:
            collector.add(
                "block-beyond-size",
                "unclean",
                f"block {block} is allocated behind the end of the disk",
                block,
                placement.bat_offset + 4 * block,
            )


def check_overlaps(placement: Placement, collector: Collector) -> None:
    """Check that no two blocks share a sector: each write to one would damage the other."""
    total = placement.layout.total_sectors
    previous = -1
    end = 0
    for key in placement.sorted_keys:
        entry = key >> BLOCK_BITS
        if entry < end:
            _overlap(placement, previous, key, collector)
        previous = key
        end = entry + total


def _overlap(placement: Placement, one: int, other: int, collector: Collector) -> None:
    if collector.is_full("block-overlap"):
        collector.count_only("block-overlap", 2)
        return
    first = other >> BLOCK_BITS
    end = (one >> BLOCK_BITS) + placement.layout.total_sectors
    pair = [(key & BLOCK_MASK, key >> BLOCK_BITS) for key in (one, other)]
    for (block, entry), (rival, _) in (pair, pair[::-1]):
        collector.corrupt(
            "block-overlap",
            f"blocks {block} and {rival} share {end - first} sectors from sector {first}",
            block,
            first * SECTOR,
            placement.guest_sectors(block, entry, first, end),
        )


def check_regions(placement: Placement, regions: list[Region], collector: Collector) -> None:
    """Check that metadata overlaps neither other metadata nor a block."""
    ordered = sorted(regions, key=lambda region: (region.first, region.end))
    for index, region in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.first >= region.end:
                break
            collector.corrupt(
                "metadata-overlap",
                f"{region.name} and {other.name} share sector {other.first}",
                offset=other.first * SECTOR,
            )
        for block, entry in _overlapping_blocks(placement, region):
            _block_on_metadata(placement, region, block, entry, collector)


def _block_on_metadata(
    placement: Placement, region: Region, block: int, entry: int, collector: Collector
) -> None:
    first = max(entry, region.first)
    end = min(entry + placement.layout.total_sectors, region.end)
    if region.soft:
        collector.add(
            "batmap-overwritten",
            "unclean",
            f"block {block} lies where the batmap belongs: it was written by a program that does "
            f"not know batmaps (QEMU's vpc driver); no data is lost",
            block,
            first * SECTOR,
        )
        return
    collector.corrupt(
        "block-on-metadata",
        f"block {block} and {region.name} share {end - first} sectors from sector {first}",
        block,
        first * SECTOR,
        placement.guest_sectors(block, entry, first, end),
    )


def _overlapping_blocks(placement: Placement, region: Region) -> list[tuple[int, int]]:
    """(block, BAT entry) of each block that shares a sector with a region."""
    keys = placement.sorted_keys
    low = max(region.first - placement.layout.total_sectors + 1, 0) << BLOCK_BITS
    index = bisect_left(keys, low)
    result = []
    while index < len(keys) and keys[index] >> BLOCK_BITS < region.end:
        result.append((keys[index] & BLOCK_MASK, keys[index] >> BLOCK_BITS))
        index += 1
    return result


def gaps(placement: Placement, regions: list[Region], end: int) -> list[tuple[int, int]]:
    """Sectors [first, end) that no structure owns, in order, up to sector `end` of the file.

    A gap before the end that is smaller than a block is left out: alignment makes such gaps.
    """
    total = placement.layout.total_sectors
    between = []
    cursor = 0
    for key in placement.sorted_keys:
        entry = key >> BLOCK_BITS
        if entry - cursor >= total:
            between.append((cursor, entry))
        cursor = max(cursor, entry + total)
    between.append((cursor, max(cursor, end)))
    owned = sorted((region.first, region.end) for region in regions)
    parts = [part for gap in between for part in subtract(gap, owned)]
    cut = [(first, min(stop, end)) for first, stop in parts if first < end]
    return [(first, stop) for first, stop in cut if stop == end or stop - first >= total]


def check_leaks(
    placement: Placement,
    free: list[tuple[int, int]],
    end: int,
    slack: int | None,
    collector: Collector,
) -> None:
    """Check for leaked space up to sector `end` (the footer, or the end of the file).

    `free`: see `gaps`; one in which no block can have been is no leak. At the end up to `slack`
    sectors are none; None: any number is none (a live image, a block device).
    """
    between = [gap for gap in free if gap[1] != end]
    if between and _all_aligned(placement):
        # Larger tables take the first sectors of a block, and where blocks are aligned the gap
        # that they leave can be a few sectors longer than a block.
        layout = placement.layout
        between = [
            (first, stop)
            for first, stop in between
            if layout.end_sector(layout.next_entry(first)) <= stop
        ]
    for first, stop in between:
        _leak("leaked-block", first, stop, collector)
    for first, stop in free:
        if stop == end and slack is not None and stop - first > slack:
            _leak("leaked-tail", first, end, collector)


def _all_aligned(placement: Placement) -> bool:
    """Whether all blocks are where blktap would place them, so that a lost one was too."""
    layout = placement.layout
    return not any(layout.data_sector(key >> BLOCK_BITS) % ALIGN for key in placement.sorted_keys)


def _leak(code: str, first: int, end: int, collector: Collector) -> None:
    collector.unclean(
        code, f"no structure owns the {end - first} sectors from sector {first}", first * SECTOR
    )
