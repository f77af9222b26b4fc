"""Orphan blocks: bitmap and data are in the file, but no BAT entry names them.

Either the entry was lost, or a crash cut an allocation off before the guest had its answer. The
image alone cannot tell which, so that an orphan is a probable loss and never mere leaked space.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vhdtool.image.metadata.collector import Collector
from vhdtool.image.metadata.findings import Severity
from vhdtool.image.metadata.guesses import content_block, order_blocks
from vhdtool.image.metadata.placement import Placement
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.sparse import DataMap
from vhdtool.vhd.batmap import COOKIE as BATMAP_COOKIE
from vhdtool.vhd.bits import all_set, count_set, last_set, runs, set_runs
from vhdtool.vhd.bits import test_bit as bit
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import COOKIE as FOOTER_COOKIE
from vhdtool.vhd.footer import POISON
from vhdtool.vhd.header import COOKIE as HEADER_COOKIE
from vhdtool.vhd.units import SECTOR, SMALLEST_BLOCK, UNUSED

_CHUNK = 1 << 20
_RUN = 16
"""Sectors in a run of equal bits, on average, that no text and no random data reaches."""
_COOKIES = (FOOTER_COOKIE, POISON, HEADER_COOKIE, BATMAP_COOKIE)
"""A footer that a longer image left behind has runs of equal bits too."""
Gap = tuple[int, int]
"""Sectors [first, end) of the file that nothing owns."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A block at sector `entry` of the file. `guest` is the block that it may be, or None."""

    entry: int
    bitmap: bytes
    layout: BlockLayout
    guest: int | None = None
    reason: str = ""

    @property
    def end(self) -> int:
        """The sector behind it."""
        return self.layout.end_sector(self.entry)

    @property
    def present(self) -> int:
        """How many of its sectors its bitmap calls present."""
        return sum(count for _, count in self.runs())

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, count) of its present sectors, counted from the block's start."""
        return set_runs(self.bitmap, self.layout.sectors)

    @property
    def sectors(self) -> tuple[int, int] | None:
        """Guest sectors (first, count) of the block that it may be."""
        if self.guest is None:
            return None
        return self.guest * self.layout.sectors, self.layout.sectors

    def __str__(self) -> str:
        where = f"; it may be block {self.guest}: {self.reason}" if self.guest is not None else ""
        return (
            f"probable loss: {self.present} sectors of data in a block at sector {self.entry} "
            f"that no BAT entry names: its entry was lost, or a crash cut its allocation off "
            f"before the write was acknowledged{where}"
        )

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types."""
        return {
            "offset": self.entry * SECTOR,
            "present": [list(run) for run in self.runs()],
            "block": self.guest,
            "reason": self.reason or None,
            "sectors": list(self.sectors) if self.sectors is not None else None,
        }


def check_orphans(
    storage: Storage,
    place: Placement,
    gaps: list[Gap],
    batmap: bytes | None,
    need: int,
    found: Collector,
) -> list[Orphan]:
    """Names and returns all orphans in `gaps`, in file order.

    Reads bitmaps there, and data up to what is not zero: a place whose data is zero is no orphan
    but room that was cleared for a block to come. `batmap`: the map's bits where they can be
    believed; `need`: blocks that the disk has.
    """
    if place.layout.block_bytes < SMALLEST_BLOCK:
        # Nobody writes such blocks, and bits of a bitmap that is so short prove nothing.
        return []
    seen = [one for gap in gaps for one in _within(storage, place, *gap)]
    orphans = _numbered(storage, place, seen, batmap, need)
    # In a live image the entry may have been written since the table was read.
    severity: Severity = "info" if found.mode == "live" else "unclean"
    for one in orphans:
        at = one.entry * SECTOR
        found.add("orphan-block", severity, str(one), one.guest, at, one.sectors)
    return orphans


def last_orphan_end(
    storage: Storage, layout: BlockLayout, bat: "array[int]", first: int, end: int
) -> int:
    """The sector behind the last orphan in sectors [first, end), which nothing owns, or `first`."""
    place = Placement(bat, layout, 0, storage.size())
    return max((one.end for one in _within(storage, place, first, end)), default=first)


def _within(storage: Storage, place: Placement, first: int, end: int) -> Iterator[Orphan]:
    layout = place.layout
    total = layout.total_sectors
    # Only the end of an image that was not closed may cut a block off.
    shortest = layout.bitmap_sectors + 1 if end == place.file_sectors else total
    data = DataMap(storage.fileno()) if isinstance(storage, FileStorage) else None
    while end - first >= shortest:
        if data is not None:
            begin = next(data.ranges(first * SECTOR, end * SECTOR), (end * SECTOR, 0))[0] // SECTOR
            # A bitmap that is a hole has no bit set. Whole strides keep the alignment.
            first += max((begin - first) // layout.stride - 1, 0) * layout.stride
        for entry in _places(layout, first, end):
            bitmap = _bitmap(storage, place, entry) if end - entry >= shortest else None
            if bitmap is not None and _has_data(storage, layout, entry, bitmap, end):
                yield Orphan(entry, bitmap, layout)
                first = entry + total
                break
        else:
            first = layout.place(first) + total


def _places(layout: BlockLayout, first: int, end: int) -> list[int]:
    """Where the next block of a gap may stand, the likeliest first.

    Other writers than blktap leave nothing between blocks; blktap aligns their data. A block may
    also have something before it that is no block: then a row of blocks ends with the gap.
    """
    total, stride, size = layout.total_sectors, layout.stride, end - first
    places = [layout.place(first), first]
    if size % total == 0:
        places.reverse()
    places.append(end - size // total * total)
    # A row of aligned blocks: before the footer, and before another aligned block.
    places.append(end - total - (size - total) // stride * stride)
    places.append(end - size // stride * stride)
    return [one for one in dict.fromkeys(places) if one >= first]


def _bitmap(storage: Storage, place: Placement, entry: int) -> bytes | None:
    """The bitmap there, or None for what cannot be one, or has no bit set."""
    layout = place.layout
    bitmap = place.read_bitmap(storage, entry)
    length = layout.bitmap_sectors * SECTOR - layout.bitmap_bytes
    padding = storage.pread(entry * SECTOR + layout.bitmap_bytes, length) if length else b""
    if len(bitmap) < layout.bitmap_bytes or len(padding) < length or not any(bitmap):
        return None
    if bitmap.startswith(_COOKIES):
        return None
    if any(padding) and not (all_set(bitmap, layout.sectors) and not padding.strip(b"\xff")):
        # QEMU sets the padding of a full bitmap too; anything else is some other data.
        return None
    return bitmap


def _has_data(storage: Storage, layout: BlockLayout, entry: int, bitmap: bytes, end: int) -> bool:
    """Whether sectors that are present have data, and the bitmap is one and no other data.

    The sectors of a real block that are not present are zero nearly always: storage that does not
    clear them, or a write that was under way, leaves old or new data there. Then the bitmap counts
    when its bits come in runs, as writes set them.
    """
    data = layout.data_sector(entry)
    if data + min(last_set(bitmap) + 1, layout.sectors) > end:
        return False
    if all_set(bitmap, layout.sectors):
        return _used(storage, data, layout.sectors, once=True) > 0
    inside = outside = 0
    parts = list(runs(bitmap, layout.sectors))
    for present, first, count in parts:
        used = _used(storage, data + first, min(count, end - data - first))
        if present:
            inside += used
        else:
            outside += used
    return inside > 0 and (4 * outside <= inside or len(parts) * _RUN <= layout.sectors)


def _used(storage: Storage, first: int, count: int, once: bool = False) -> int:
    """How many sectors are not zero; with `once` 1 stands for any number of them."""
    used = 0
    for skip in range(0, count * SECTOR, _CHUNK):
        raw = storage.pread(first * SECTOR + skip, min(_CHUNK, count * SECTOR - skip))
        if raw.count(0) == len(raw):
            continue
        if once:
            return 1
        used += sum(any(raw[at : at + SECTOR]) for at in range(0, len(raw), SECTOR))
    return used


def _numbered(
    storage: Storage, place: Placement, found: list[Orphan], batmap: bytes | None, need: int
) -> list[Orphan]:
    """The orphans, with the guest block that each may be where something tells."""
    if not found:
        return []
    nowhere = {*place.zeroed, *place.outside}
    free = [
        block
        for block in range(min(need, len(place.bat)))
        if place.bat[block] == UNUSED or block in nowhere
    ]
    guesses: dict[int, tuple[int, str]] = {}
    said = [block for block in free if batmap is not None and bit(batmap, block)]
    full = [one for one in found if count_set(one.bitmap) >= one.layout.sectors]
    if len(said) == 1 and len(full) == 1:
        guesses[full[0].entry] = said[0], "the batmap calls it full"
    for entry, guess in order_blocks(place.keys, [one.entry for one in found], free).items():
        guesses.setdefault(entry, guess)
    if len(free) == 1 and len(found) == 1:
        guesses.setdefault(found[0].entry, (free[0], "no other block lacks a place"))
    for one in found:
        if one.entry not in guesses:
            block_there = content_block(storage, one.layout, one.entry, one.bitmap)
            if block_there is not None and block_there in free:
                guesses[one.entry] = block_there, "its data says so (a partition table)"
    return [
        Orphan(one.entry, one.bitmap, one.layout, *guesses.get(one.entry, (None, "")))
        for one in found
    ]
