"""Who owns which sector of the file: no two structures may share one, none may be lost."""

from array import array
from bisect import bisect_left
from collections.abc import Iterator

from vhdtool.image.checks.collector import Collector
from vhdtool.image.checks.regions import Region
from vhdtool.storage import Storage
from vhdtool.vhd.bits import reversed_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR, UNUSED

_BLOCK_BITS = 32
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1


class Placement:
    """The allocated blocks in file order: `keys` are entry << 32 | block.

    Entries that cannot be read at all (zero, past the end, wrapping) are reported and left out.
    """

    def __init__(
        self,
        bat: "array[int]",
        layout: BlockLayout,
        bat_offset: int,
        file_size: int,
        bitmaps_reversed: bool = False,
    ) -> None:
        self.layout = layout
        self.bitmaps_reversed = bitmaps_reversed
        self.bat_offset = bat_offset
        self.file_sectors = file_size // SECTOR
        last = self.file_sectors - layout.bitmap_sectors
        self.zeroed: list[int] = []
        self.outside: list[int] = []
        keys = array("Q")
        highest = 0
        ordered = True
        for block, entry in enumerate(bat):
            if entry == UNUSED:
                continue
            if entry == 0:
                self.zeroed.append(block)
            elif entry > last:
                self.outside.append(block)
            else:
                keys.append(entry << _BLOCK_BITS | block)
                ordered = ordered and entry >= highest
                highest = entry
        # Eight bytes a block; only a table that is out of order costs a sort in objects.
        self.keys = keys if ordered else array("Q", sorted(keys))
        self.bat = bat

    def read_bitmap(self, storage: Storage, entry: int) -> bytes:
        """The bits of the block at sector `entry`; fewer where the file ends before."""
        raw = storage.pread(entry * SECTOR, self.layout.bitmap_bytes)
        return reversed_bits(raw) if self.bitmaps_reversed else raw

    def guest(self, block: int, entry: int, first: int, end: int) -> tuple[int, int] | None:
        """Guest sectors (first, count) of a block that lie in file sectors [first, end)."""
        start = max(first - self.layout.data_sector(entry), 0)
        stop = min(end - self.layout.data_sector(entry), self.layout.sectors)
        if first < self.layout.data_sector(entry) < end:
            # Without its bitmap nothing in the block can be trusted.
            start, stop = 0, self.layout.sectors
        return (block * self.layout.sectors + start, stop - start) if stop > start else None


def check_entries(place: Placement, need: int, found: Collector) -> None:
    """Entries that point nowhere, and blocks behind the end of the disk."""
    for first, count in _ranges(place.zeroed):
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
        block = key & _BLOCK_MASK
        if block >= need:
            found.add(
                "block-beyond-size",
                "unclean",
                f"block {block} is allocated behind the end of the disk",
                block,
                place.bat_offset + 4 * block,
            )


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for number in numbers:
        if result and sum(result[-1]) == number:
            result[-1] = (result[-1][0], result[-1][1] + 1)
        else:
            result.append((number, 1))
    return result


def check_overlaps(place: Placement, found: Collector) -> None:
    """Two blocks on one sector: each write to one damages the other."""
    total = place.layout.total_sectors
    previous = -1
    end = 0
    for key in place.keys:
        entry = key >> _BLOCK_BITS
        if entry < end:
            _overlap(place, previous, key, found)
        previous = key
        end = entry + total


def _overlap(place: Placement, one: int, other: int, found: Collector) -> None:
    if found.is_full("block-overlap"):
        found.only_count("block-overlap", 2)
        return
    first = other >> _BLOCK_BITS
    end = (one >> _BLOCK_BITS) + place.layout.total_sectors
    pair = [(key & _BLOCK_MASK, key >> _BLOCK_BITS) for key in (one, other)]
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
    low = max(region.first - place.layout.total_sectors + 1, 0) << _BLOCK_BITS
    index = bisect_left(place.keys, low)
    result = []
    while index < len(place.keys) and place.keys[index] >> _BLOCK_BITS < region.end:
        key = place.keys[index]
        result.append((key & _BLOCK_MASK, key >> _BLOCK_BITS))
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
        entry = key >> _BLOCK_BITS
        if entry - cursor >= total:
            between.append((cursor, entry))
        cursor = max(cursor, entry + total)
    between.append((cursor, max(cursor, end)))
    owned = sorted((region.first, region.end) for region in regions)
    parts = [part for gap in between for part in _without(*gap, owned)]
    cut = [(first, min(stop, end)) for first, stop in parts if first < end]
    return [(first, stop) for first, stop in cut if stop == end or stop - first >= total]


def _without(first: int, end: int, owned: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of sectors [first, end) that none of the ranges has."""
    for start, stop in owned:
        if stop <= first or start >= end:
            continue
        if start > first:
            yield first, start
        first = max(first, stop)
    if first < end:
        yield first, end


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
