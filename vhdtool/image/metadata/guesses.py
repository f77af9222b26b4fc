"""Which guest block an orphan may be, from the order of blocks in the file or from its data."""

from array import array
from bisect import bisect_left, bisect_right
from itertools import pairwise

from vhdtool.storage import Storage
from vhdtool.vhd.bits import test_bit as bit
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR

_BLOCK_BITS = 32
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1


def order_blocks(
    keys: "array[int]", entries: list[int], free: list[int]
) -> dict[int, tuple[int, str]]:
    """{entry: (block, reason)} of orphans in a file whose blocks rise with their place.

    `keys` are entry << 32 | block in file order, `entries` rise, `free` are the blocks without an
    entry. In such a file the blocks between two neighbours lie between them in number, too: where
    as many are free there as there are orphans, each has its number. Behind the last block that
    holds when the disk was filled without a gap so far.

    >>> order_blocks(array("Q", [10 << 32 | 0, 30 << 32 | 2]), [20], [1, 3])[20][0]
    1
    """
    blocks = [key & _BLOCK_MASK for key in keys]
    if not blocks or any(one >= other for one, other in pairwise(blocks)):
        return {}
    groups: dict[int, list[int]] = {}
    for entry in entries:
        groups.setdefault(bisect_left(keys, entry << _BLOCK_BITS), []).append(entry)
    found: dict[int, tuple[int, str]] = {}
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
            found.update((entry, (n, reason)) for entry, n in zip(group, between, strict=True))
        before += len(group)
    return found


def content_block(storage: Storage, layout: BlockLayout, entry: int, bitmap: bytes) -> int | None:
    """The block that the data itself names: the start of a disk with a partition table, or the
    place that a GPT header gives for itself."""

    def sector(index: int) -> bytes:
        if not bit(bitmap, index):
            return b""
        return storage.pread((layout.data_sector(entry) + index) * SECTOR, SECTOR)

    if sector(0)[510:] == b"\x55\xaa" and sector(1)[:8] == b"EFI PART":
        return 0
    # The copy of a GPT ends the disk, and so stands at the end of what the last block has of it.
    for index in range(layout.sectors - 1, -1, -1):
        if not bit(bitmap, index):
            continue
        raw = sector(index)
        if not any(raw):
            continue
        own = int.from_bytes(raw[24:32], "little")
        if raw[:8] == b"EFI PART" and own % layout.sectors == index:
            return own // layout.sectors
        return None
    return None
