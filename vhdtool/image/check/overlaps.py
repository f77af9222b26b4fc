"""Who owns which sector of the file: no two structures may share one, none may be lost."""

from bisect import bisect_left

from vhdtool.image.check.regions import Region
from vhdtool.image.metadata.collector import Collector
from vhdtool.image.metadata.placement import BLOCK_BITS, BLOCK_MASK, Placement
from vhdtool.ranges import merge, subtract
from vhdtool.vhd.units import SECTOR, UNUSED


def check_entries(place: Placement, need: int, found: Collector) -> None:
    """Entries that point nowhere, and blocks behind the end of the disk."""
    for first, end in merge((block, block + 1) for block in place.zeroed):
        count = end - first
        found.corrupt(
            "bat-zeroed",
            f"{count} BAT entries from block {first} are zero: the table was overwritten",
            first,
            place.bat_offset + 4 * first,
            (first * place.layout.sectors, count * place.layout.sectors),
        )
    for block in place.outside:
        entry = place.bat[block]
        code, text = "bat-past-end", f"is behind the file's end ({place.file_sectors} sectors)"
        if entry + place.layout.total_sectors > UNUSED:
            code, text = "bat-wraps", "would end behind what 32 bits can count"
        found.corrupt(
            code,
            f"block {block} at sector {entry} {text}",
            block,
            place.bat_offset + 4 * block,
            (block * place.layout.sectors, place.layout.sectors),
        )
    for key in place.keys:
        block = key & BLOCK_MASK
        if block >= need:
            found.add(
                "block-beyond-size",
                "unclean",
                f"block {block} is allocated behind the end of the disk",
                block,
                place.bat_offset + 4 * block,
            )


def check_overlaps(place: Placement, found: Collector) -> None:
    """Two blocks on one sector: each write to one damages the other."""
    total = place.layout.total_sectors
    previous = -1
    end = 0
    for key in place.keys:
        entry = key >> BLOCK_BITS
        if entry < end:
            _overlap(place, previous, key, found)
        previous = key
        end = entry + total


def _overlap(place: Placement, one: int, other: int, found: Collector) -> None:
    if found.is_full("block-overlap"):
        found.only_count("block-overlap", 2)
        return
    first = other >> BLOCK_BITS
    end = (one >> BLOCK_BITS) + place.layout.total_sectors
    pair = [(key & BLOCK_MASK, key >> BLOCK_BITS) for key in (one, other)]
    for (block, entry), (rival, _) in (pair, pair[::-1]):
        found.corrupt(
            "block-overlap",
            f"blocks {block} and {rival} share {end - first} sectors from sector {first}",
            block,
            first * SECTOR,
            place.guest(block, entry, first, end),
        )


def check_regions(place: Placement, regions: list[Region], found: Collector) -> None:
    """Blocks on metadata, and metadata on metadata."""
    ordered = sorted(regions, key=lambda region: (region.first, region.end))
    for index, region in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.first >= region.end:
                break
            found.corrupt(
                "metadata-overlap",
                f"{region.name} and {other.name} share sector {other.first}",
                offset=other.first * SECTOR,
            )
        for block, entry in _touching(place, region):
            _on_metadata(place, region, block, entry, found)


def _on_metadata(
    place: Placement, region: Region, block: int, entry: int, found: Collector
) -> None:
    first = max(entry, region.first)
    end = min(entry + place.layout.total_sectors, region.end)
    if region.soft:
        found.add(
            "batmap-overwritten",
            "unclean",
            f"block {block} stands where the batmap belongs: a program that does not know "
            f"batmaps (QEMU's vpc driver) wrote here; no data is lost",
            block,
            first * SECTOR,
        )
        return
    found.corrupt(
        "block-on-metadata",
        f"block {block} and {region.name} share {end - first} sectors from sector {first}",
        block,
        first * SECTOR,
        place.guest(block, entry, first, end),
    )


def _touching(place: Placement, region: Region) -> list[tuple[int, int]]:
    low = max(region.first - place.layout.total_sectors + 1, 0) << BLOCK_BITS
    index = bisect_left(place.keys, low)
    result = []
    while index < len(place.keys) and place.keys[index] >> BLOCK_BITS < region.end:
        key = place.keys[index]
        result.append((key & BLOCK_MASK, key >> BLOCK_BITS))
        index += 1
    return result


def gaps(place: Placement, regions: list[Region], end: int) -> list[tuple[int, int]]:
    """Sectors [first, end) that nothing owns, in order, up to sector `end` of the file.

    Those before the end are left out where no block would fit: alignment leaves them everywhere.
    """
    total = place.layout.total_sectors
    between = []
    cursor = 0
    for key in place.keys:
        entry = key >> BLOCK_BITS
        if entry - cursor >= total:
            between.append((cursor, entry))
        cursor = max(cursor, entry + total)
    between.append((cursor, max(cursor, end)))
    owned = sorted((region.first, region.end) for region in regions)
    parts = [part for gap in between for part in subtract(gap, owned)]
    cut = [(first, min(stop, end)) for first, stop in parts if first < end]
    return [(first, stop) for first, stop in cut if stop == end or stop - first >= total]


def check_leaks(free: list[tuple[int, int]], end: int, slack: int | None, found: Collector) -> None:
    """Space that nothing owns, up to sector `end` (the footer, or the file's end).

    A hole as large as a block is worth naming; smaller ones come from alignment. At the end up
    to `slack` sectors are no leak; None: the end says nothing (a live image, a block device).
    """
    for first, stop in free:
        if stop == end:
            if slack is not None and stop - first > slack:
                _leak("leaked-tail", first, end, found)
        else:
            _leak("leaked-block", first, stop, found)


def _leak(code: str, first: int, end: int, found: Collector) -> None:
    found.unclean(
        code, f"{end - first} sectors from sector {first} belong to nothing", first * SECTOR
    )
