"""Orphan blocks: bitmap and data are in the file, but no BAT entry names them.

Either the entry was lost, or a crash interrupted the allocation before the write was
acknowledged. The image alone does not show which, so an orphan counts as a probable loss.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vhdtool.image.metadata.placement import BLOCK_BITS, BLOCK_MASK, Placement
from vhdtool.storage import Storage
from vhdtool.storage.sparse import data_map
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
"""Mean length of the runs of equal bits (in sectors) that only a real bitmap has."""
_COOKIES = (FOOTER_COOKIE, POISON, HEADER_COOKIE, BATMAP_COOKIE)
"""Old metadata, which a longer image left behind, has long runs of equal bits, too."""
Gap = tuple[int, int]
"""Sectors [first, end) of the file that no structure owns."""
Guess = tuple[int, str]
"""(guest block, reason)."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """An orphan block at sector `entry` of the file.

    `guest` is the guest block that it probably is, and `reason` says why; None where unknown.
    """

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
        """Number of sectors that its bitmap marks as present."""
        return sum(count for _, count in self.runs())

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, count) of its present sectors, counted from the start of the block."""
        return set_runs(self.bitmap, self.layout.sectors)

    @property
    def sectors(self) -> tuple[int, int] | None:
        """Guest sectors (first, count) of the block that it probably is."""
        if self.guest is None:
            return None
        return self.guest * self.layout.sectors, self.layout.sectors

    def __str__(self) -> str:
        guess = f"; it may be block {self.guest}: {self.reason}" if self.guest is not None else ""
        return (
            f"probable loss: {self.present} sectors of data in a block at sector {self.entry} "
            f"that no BAT entry names: its entry was lost, or a crash interrupted its allocation "
            f"before the write was acknowledged{guess}"
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


def find_orphans(
    storage: Storage,
    placement: Placement,
    gaps: list[Gap],
    batmap: bytes | None,
    need: int,
) -> list[Orphan]:
    """Find all orphans in `gaps`, in file order.

    Reads bitmaps there, and data up to the first byte that is not zero: a bitmap over zeros is
    preallocation and no orphan. `batmap`: the bits of a batmap whose checksum is right;
    `need`: number of blocks of the disk.
    """
    if placement.layout.block_bytes < SMALLEST_BLOCK:
        # No writer makes such blocks, and so short a bitmap is no evidence.
        return []
    orphans = [one for gap in gaps for one in _orphans_in(storage, placement, *gap)]
    return _with_guesses(storage, placement, orphans, batmap, need)


def last_orphan_end(
    storage: Storage, layout: BlockLayout, bat: "array[int]", first: int, end: int
) -> int:
    """The sector behind the last orphan in the unowned sectors [first, end), or `first`."""
    placement = Placement(bat, layout, 0, storage.size())
    return max((one.end for one in _orphans_in(storage, placement, first, end)), default=first)


def _orphans_in(storage: Storage, placement: Placement, first: int, end: int) -> Iterator[Orphan]:
    layout = placement.layout
    total = layout.total_sectors
    # Only the end of an image that was not closed may cut a block off.
    shortest = layout.bitmap_sectors + 1 if end == placement.file_sectors else total
    data = data_map(storage)
    while end - first >= shortest:
        if data is not None:
            begin = next(data.ranges(first * SECTOR, end * SECTOR), (end * SECTOR, 0))[0] // SECTOR
            # A bitmap that is a hole has no bit set. Whole strides preserve the alignment.
            first += max((begin - first) // layout.stride - 1, 0) * layout.stride
        for entry in _candidates(layout, first, end):
            bitmap = _bitmap(storage, placement, entry) if end - entry >= shortest else None
            if bitmap is not None and _has_data(storage, layout, entry, bitmap, end):
                yield Orphan(entry, bitmap, layout)
                first = entry + total
                break
        else:
            first = layout.next_entry(first) + total


def _candidates(layout: BlockLayout, first: int, end: int) -> list[int]:
    """Sectors at which the next block of a gap may begin, the likeliest first.

    blktap aligns the data of blocks; other writers leave nothing between blocks. A gap may also
    begin with something that is no block: then a row of blocks ends with the gap.
    """
    total, stride, size = layout.total_sectors, layout.stride, end - first
    sectors = [layout.next_entry(first), first]
    if size % total == 0:
        sectors.reverse()
    sectors.append(end - size // total * total)
    # A row of aligned blocks: before the footer, and before another aligned block.
    sectors.append(end - total - (size - total) // stride * stride)
    sectors.append(end - size // stride * stride)
    return [one for one in dict.fromkeys(sectors) if one >= first]


def _bitmap(storage: Storage, placement: Placement, entry: int) -> bytes | None:
    """The bitmap at sector `entry`, or None where there is none or no bit is set."""
    layout = placement.layout
    bitmap = placement.read_bitmap(storage, entry)
    length = layout.bitmap_sectors * SECTOR - layout.bitmap_bytes
    padding = storage.pread(entry * SECTOR + layout.bitmap_bytes, length) if length else b""
    if len(bitmap) < layout.bitmap_bytes or len(padding) < length or not any(bitmap):
        return None
    if bitmap.startswith(_COOKIES):
        return None
    if any(padding) and not (all_set(bitmap, layout.sectors) and not padding.strip(b"\xff")):
        # QEMU also sets the padding of a full bitmap; any other padding shows that it is data.
        return None
    return bitmap


def _has_data(storage: Storage, layout: BlockLayout, entry: int, bitmap: bytes, end: int) -> bool:
    """Whether present sectors have data, and the bitmap really is a bitmap.

    In a real block the sectors that are not present are zero nearly always. Exceptions are
    storage that does not clear them, and a write that was in flight: then the bitmap is accepted
    when its bits come in runs, as writes set them.
    """
    data = layout.data_sector(entry)
    if data + min(last_set(bitmap) + 1, layout.sectors) > end:
        return False
    if all_set(bitmap, layout.sectors):
        return _nonzero_sectors(storage, data, layout.sectors, any_suffices=True) > 0
    inside = outside = 0
    parts = list(runs(bitmap, layout.sectors))
    for present, first, count in parts:
        nonzero = _nonzero_sectors(storage, data + first, min(count, end - data - first))
        if present:
            inside += nonzero
        else:
            outside += nonzero
    return inside > 0 and (4 * outside <= inside or len(parts) * _RUN <= layout.sectors)


def _nonzero_sectors(storage: Storage, first: int, count: int, any_suffices: bool = False) -> int:
    """Number of sectors that are not zero; with `any_suffices` at most 1, which is quicker."""
    nonzero = 0
    for skip in range(0, count * SECTOR, _CHUNK):
        raw = storage.pread(first * SECTOR + skip, min(_CHUNK, count * SECTOR - skip))
        if raw.count(0) == len(raw):
            continue
        if any_suffices:
            return 1
        nonzero += sum(any(raw[at : at + SECTOR]) for at in range(0, len(raw), SECTOR))
    return nonzero


def _with_guesses(
    storage: Storage,
    placement: Placement,
    orphans: list[Orphan],
    batmap: bytes | None,
    need: int,
) -> list[Orphan]:
    """The orphans, each with the guest block that it probably is."""
    if not orphans:
        return []
    unreadable = {*placement.zeroed, *placement.outside}
    free = [
        block
        for block in range(min(need, len(placement.bat)))
        if placement.bat[block] == UNUSED or block in unreadable
    ]
    guesses: dict[int, Guess] = {}
    marked_full = [block for block in free if batmap is not None and bit(batmap, block)]
    full = [one for one in orphans if count_set(one.bitmap) >= one.layout.sectors]
    if len(marked_full) == 1 and len(full) == 1:
        guesses[full[0].entry] = marked_full[0], "the batmap marks it as full"
    by_order = guess_by_order(placement.sorted_keys, [one.entry for one in orphans], free)
    for entry, guess in by_order.items():
        guesses.setdefault(entry, guess)
    if len(free) == 1 and len(orphans) == 1:
        guesses.setdefault(orphans[0].entry, (free[0], "no other block is free"))
    for one in orphans:
        if one.entry not in guesses:
            block = _guess_by_content(storage, one)
            if block is not None and block in free:
                guesses[one.entry] = block, "its data has a partition table"
    return [
        Orphan(one.entry, one.bitmap, one.layout, *guesses.get(one.entry, (None, "")))
        for one in orphans
    ]


def guess_by_order(
    sorted_keys: "array[int]", entries: list[int], free: list[int]
) -> dict[int, Guess]:
    """{entry: (block, reason)} of orphans in a file whose blocks are in ascending order.

    `sorted_keys` as in Placement; `entries` of the orphans ascend, as do the `free` blocks. Where
    as many blocks are free between two neighbours as there are orphans, each orphan's number is
    known. Behind the last block it is known if the disk was filled without a gap so far.

    >>> guess_by_order(array("Q", [10 << 32 | 0, 30 << 32 | 2]), [20], [1, 3])[20][0]
    1
    """
    blocks = [key & BLOCK_MASK for key in sorted_keys]
    if not blocks or any(one >= other for one, other in pairwise(blocks)):
        return {}
    groups: dict[int, list[int]] = {}
    for entry in entries:
        groups.setdefault(bisect_left(sorted_keys, entry << BLOCK_BITS), []).append(entry)
    guesses: dict[int, Guess] = {}
    before = 0
    for index, group in groups.items():
        low = blocks[index - 1] if index else -1
        first = bisect_right(free, low)
        if index < len(blocks):
            reason = "the blocks are in order, and no other is free between its neighbours"
            between = free[first : bisect_left(free, blocks[index])]
        else:
            reason = "the disk was filled in order, and this block comes next"
            between = free[first : first + len(group)]
            if first != before or between != list(range(low + 1, low + 1 + len(group))):
                between = []
        if len(between) == len(group):
            guesses.update((entry, (n, reason)) for entry, n in zip(group, between, strict=True))
        before += len(group)
    return guesses


def _guess_by_content(storage: Storage, orphan: Orphan) -> int | None:
    """The block that the data of an orphan shows: the first one by its partition table, or that
    of the sector number in a copy of a GPT header.
    """
    layout = orphan.layout

    def sector(index: int) -> bytes:
        if not bit(orphan.bitmap, index):
            return b""
        return storage.pread((layout.data_sector(orphan.entry) + index) * SECTOR, SECTOR)

    if sector(0)[510:] == b"\x55\xaa" and sector(1)[:8] == b"EFI PART":
        return 0
    # The copy of the GPT header is the last sector of the disk: the last one of its block in use.
    for index in range(layout.sectors - 1, -1, -1):
        raw = sector(index)
        if not any(raw):
            continue
        own = int.from_bytes(raw[24:32], "little")
        if raw[:8] == b"EFI PART" and own % layout.sectors == index:
            return own // layout.sectors
        return None
    return None
