"""Tables in a file that can be its BAT, where no header says which one is.

A candidate is a block size together with a position at which every entry of a BAT for that size is
possible.
"""

from array import array
from collections.abc import Iterator
from itertools import pairwise

from vhdtool.storage import Storage
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.batmap import COOKIE as BATMAP_COOKIE
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import SIZE, Header
from vhdtool.vhd.units import DEFAULT_BLOCK, MAX_ENTRIES, MIB, SECTOR, SMALLEST_BLOCK, UNUSED

BLOCK_SIZES = (DEFAULT_BLOCK, SMALLEST_BLOCK, MIB, *(MIB << power for power in range(2, 7)))
"""Bytes of a block in the images of every known creator, and some more."""
_SEARCHED = MIB
"""Bytes behind a BAT in which a batmap is searched: a BAT may be larger than its disk needs."""


def possible_tables(
    storage: Storage, footer: Footer, old: Header, offset: int, file_size: int
) -> Iterator[tuple[Header, bool]]:
    """Headers with which each entry is possible, and whether entries follow behind the last."""
    # Elsewhere a part of a damaged table, or a bitmap, could pass for a whole one.
    places = dict.fromkeys((offset + SIZE, old.bat_offset))
    starts = [one for one in places if one % SECTOR == 0 and offset + SIZE <= one < file_size]
    for block_bytes in BLOCK_SIZES:
        layout = BlockLayout(block_bytes)
        need = layout.blocks_for(footer.current_size)
        if not 0 < need <= MAX_ENTRIES:
            continue
        for start in starts:
            entries = _entries_at(storage, layout, start, need, file_size)
            if entries is not None:
                count, goes_on = entries
                yield Header(count, block_bytes, start), goes_on


def _possible(raw: bytes, file_sectors: int) -> bool:
    """Whether a sector may be a part of a BAT: free and possible entries, then padding."""
    entries = unpack_bat(raw, len(raw) // 4)
    while entries and entries[-1] == 0:
        entries.pop()
    return len(entries) > 0 and _entries_possible(entries, file_sectors)


def _entries_possible(entries: "array[int]", file_sectors: int) -> bool:
    return all(entry == UNUSED or 0 < entry < file_sectors for entry in entries)


def _entries_at(
    storage: Storage, layout: BlockLayout, start: int, need: int, file_size: int
) -> tuple[int, bool] | None:
    """The number of entries of a BAT at byte `start`, or None where none can be.

    Also whether it goes on, and so is a longer one.
    """
    if start + 4 * need > file_size:
        return None
    first = storage.pread(start, min(4 * need, SECTOR))
    if not _possible(first, file_size // SECTOR):
        return None
    count = _counted_by_batmap(storage, start, need)
    header = Header(count, layout.block_bytes, start)
    raw = storage.pread(start, header.bat_bytes)
    entries = unpack_bat(raw, count)
    if len(entries) < count or not _entries_possible(entries, file_size // SECTOR):
        return None
    padding = raw[4 * count : header.bat_bytes]
    if padding.strip(b"\0") and padding.strip(b"\xff"):
        return None
    used = sorted(entry for entry in entries if entry != UNUSED)
    if any(other - one < layout.total_sectors for one, other in pairwise(used)):
        return None
    longest = start + 4 * need * (layout.block_bytes // SMALLEST_BLOCK)
    return count, _goes_on(storage, header, used, max(longest, header.bat_end + SECTOR), file_size)


def _goes_on(
    storage: Storage, header: Header, used: list[int], longest: int, file_size: int
) -> bool:
    """Whether entries follow before a block or a batmap begins: then the table is a longer one.

    Damage can have made some of them zero, and whole sectors of them. `longest`: where the longest
    table ends, in bytes.
    """
    first = header.bat_end
    end = min([file_size, longest, *(SECTOR * one for one in used if SECTOR * one >= first)])
    raw = storage.pread(first, end - first)
    if raw.startswith(BATMAP_COOKIE):
        return False
    return any(
        _entries_possible(array("I", filter(None, entries)), file_size // SECTOR)
        for at in range(0, len(raw), SECTOR)
        if UNUSED in (entries := unpack_bat(raw[at : at + SECTOR], len(raw[at : at + SECTOR]) // 4))
    )


def _counted_by_batmap(storage: Storage, start: int, need: int) -> int:
    """The number of entries of a BAT that ends where a batmap begins; else `need`.

    A BAT may be larger than its disk needs. blktap pads it with zeros.
    """
    raw = storage.pread(start, 4 * need + _SEARCHED)
    for end in range(-(-4 * need // SECTOR) * SECTOR, len(raw) - SECTOR + 1, SECTOR):
        if raw.startswith(BATMAP_COOKIE, end):
            return max(need, len(raw[:end].rstrip(b"\0")) // 4)
        if not raw[end : end + SECTOR].strip(b"\0") or not _possible(raw[end : end + SECTOR], 1):
            break
    return need
