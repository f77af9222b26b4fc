"""The guest block of each orphan block: by what its data states, then by the order of the file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from vhdtool.image.metadata.orphans import Orphan
from vhdtool.image.salvage.anchors import anchors, partition_starts
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd.bits import test_bit as bit
from vhdtool.vhd.units import SECTOR

_ORDER = "the blocks of the file are in order, and as many are free between its neighbours"


def numbered(
    storage: Storage, orphans: list[Orphan], known: dict[int, int], need: int
) -> list[Orphan]:
    """The orphans, each with its guest block where there is evidence; reads all their data.

    Numbers that they have already stay where nothing else is known, and no two have them.
    `known`: BAT entry -> guest block of the blocks that can be trusted; `need`: number of blocks of
    the disk. First come blocks whose data states a position (a boot sector, for example). Where
    all known blocks ascend in the file, as many orphans as are free between two of them follow.
    """
    taken = set(known.values())
    stated = _stated(storage, orphans)
    count = Counter(block for block, _ in stated.values())
    found = {
        entry: guess
        for entry, guess in stated.items()
        if guess[0] < need and guess[0] not in taken and count[guess[0]] == 1
    }
    placed = known | {entry: block for entry, (block, _) in found.items()}
    for entry, block in _by_order([one.entry for one in orphans], placed, need):
        found[entry] = block, _ORDER
    taken |= {block for block, _ in found.values()}
    for one in orphans:
        free = one.guest is not None and one.guest < need and one.guest not in taken
        if one.guest is not None and free and one.entry not in found:
            found[one.entry] = one.guest, one.reason
            taken.add(one.guest)
    return [
        replace(one, guest=found[one.entry][0], reason=found[one.entry][1])
        if one.entry in found
        else replace(one, guest=None, reason="")
        for one in orphans
    ]


def _stated(storage: Storage, orphans: list[Orphan]) -> dict[int, tuple[int, str]]:
    """{entry: (block, reason)} of the orphans whose data states one position only."""
    firsts = [(one, _data(storage, one, SECTOR)) for one in orphans]
    tables = [(one, starts) for one, raw in firsts if (starts := partition_starts(raw))]
    # Of two tables one is a copy, or the table of an extended partition.
    starts = tables[0][1] if len(tables) == 1 else []
    result = {}
    for one in orphans:
        sectors = one.layout.sectors
        possible: set[tuple[int, str]] = set()
        for index, options in anchors(_data(storage, one, one.layout.block_bytes), starts):
            if not bit(one.bitmap, index):
                continue
            fits = {(at // sectors, text) for at, text in options if at % sectors == index}
            # One structure may fit two positions; the whole block must fit one.
            possible = {two for two in possible if two[0] in {n for n, _ in fits}} or fits
        if len({block for block, _ in possible}) == 1:
            block, text = min(possible)
            result[one.entry] = block, f"{text} in it states this position"
    if len(tables) == 1:
        result.setdefault(tables[0][0].entry, (0, "it begins with the only partition table"))
    return result


def _data(storage: Storage, one: Orphan, length: int) -> bytes:
    try:
        return storage.pread(one.layout.data_offset(one.entry), length)
    except StorageError:
        return b""


def _by_order(entries: list[int], placed: dict[int, int], need: int) -> Iterator[tuple[int, int]]:
    """(entry, block) of orphans that fill the free blocks between two neighbours exactly.

    >>> list(_by_order([10, 20, 30], {10: 0, 40: 3}, 4))
    [(20, 1), (30, 2)]
    """
    fences = [(-1, -1), *sorted(placed.items()), (1 << 33, need)]
    if any(one[1] >= other[1] for one, other in pairwise(fences)):
        return
    for (low, before), (high, after) in pairwise(fences):
        between = [entry for entry in entries if low < entry < high]
        if len(between) == after - before - 1:
            yield from zip(between, range(before + 1, after), strict=True)
