"""Sorts BAT entries and detects overlapping blocks; a million entries take milliseconds.

A Python loop over the BAT of 2040 GiB takes a tenth of a second. Here the entries of a chunk are
the digits of one large integer, in base 2**32, and one operation processes all of them.
"""

import sys
from array import array

from vhdtool.vhd.bat import empty_bat, pack_bat, unpack_bat
from vhdtool.vhd.units import UNUSED

try:
    from vhdtool.image.metadata import _bat_sort
except ImportError:
    # Not built, or built for another machine: the Python code gives the same result.
    _bat_sort = None  # type: ignore[assignment]

compiled = _bat_sort is not None
"""Whether the C module was built."""

CHUNK = 1 << 16
"""Entries that are processed together."""
_MOST_SLOTS = 4
"""Slots per entry up to which a slot table is faster than sorting."""
_NONE = UNUSED.to_bytes(4, "big")


def used_entries(raw: bytes | bytearray, entries: int) -> "array[int]":
    """The used ones of the first `entries` entries of a BAT in file order, unsorted.

    >>> list(used_entries(bytes.fromhex("00000005ffffffff00000003"), 3))
    [5, 3]
    """
    used = bytearray()
    for first in range(0, 4 * entries, 4 * CHUNK):
        used += _used(bytes(raw[first : min(first + 4 * CHUNK, 4 * entries)]))
    return unpack_bat(used, len(used) // 4)


def _used(chunk: bytes) -> bytes:
    if chunk.count(0xFF) == len(chunk):
        return b""
    highest = chunk[0::4]
    maybe = highest.count(0xFF)
    if not maybe:
        return chunk
    every = int.from_bytes(highest, "big")
    for byte in (1, 2, 3):
        every &= int.from_bytes(chunk[byte::4], "big")
    unused = every.to_bytes(len(highest), "big").count(0xFF)
    if not unused:
        return chunk
    if unused == maybe:
        # No used entry begins with 0xFF. A run of these bytes may begin at the end of the entry
        # before; the result is the same whichever four bytes of the run are removed.
        return chunk.replace(_NONE, b"")
    used = array("I", filter(UNUSED.__ne__, unpack_bat(chunk, len(highest))))
    return pack_bat(used)[: 4 * len(used)]


def sort_entries(
    entries: "array[int]", sectors: int, limit: int, use_c: bool = compiled
) -> tuple["array[int]", bool]:
    """(entries in ascending order, whether no two blocks of `sectors` sectors overlap).

    `limit`: an upper bound of valid entries; it affects the speed only.
    """
    if disjoint(entries, sectors):
        return entries, True
    if use_c:
        ordered = array("I", entries)
        _bat_sort.sort(ordered)
        return ordered, disjoint(ordered, sectors)
    return _sort_in_python(entries, sectors, limit)


def _sort_in_python(entries: "array[int]", sectors: int, limit: int) -> tuple["array[int]", bool]:
    shift = sectors.bit_length() - 1
    slots = (limit >> shift) + 1
    if slots <= _MOST_SLOTS * len(entries):
        # Two blocks that share a slot overlap; otherwise the slots have the entries in order. A
        # shift takes half the time of a division.
        table = empty_bat(slots)
        try:
            for entry in entries:
                table[entry >> shift] = entry
        except IndexError:
            pass
        else:
            ordered = used_entries(pack_bat(table), slots)
            if len(ordered) == len(entries):
                return ordered, disjoint(ordered, sectors)
    ordered = array("I", sorted(entries))
    return ordered, disjoint(ordered, sectors)


def disjoint(entries: "array[int]", sectors: int) -> bool:
    """Whether each entry is at least `sectors` larger than the one before.

    >>> disjoint(array("I", [1, 5, 9]), 4), disjoint(array("I", [1, 5, 8]), 4)
    (True, False)
    """
    return all(
        _chunk_disjoint(entries[first : first + CHUNK + 1], sectors)
        for first in range(0, len(entries) - 1, CHUNK)
    )


def _chunk_disjoint(entries: "array[int]", sectors: int) -> bool:
    raw = _little_endian(entries)
    count = len(entries) - 1
    low, high = int.from_bytes(raw[:-4], "little"), int.from_bytes(raw[4:], "little")
    ones = int.from_bytes(b"\1\0\0\0" * count, "little")
    add = sectors * ones
    least = low + add
    # A carry into a digit, or a borrow from it, shows in the lowest bit of that digit.
    lowest = ones << 32
    if (low ^ add ^ least) & lowest or high < least:
        return False
    return not (high ^ least ^ (high - least)) & lowest


def _little_endian(entries: "array[int]") -> bytes:
    if sys.byteorder == "little":
        return entries.tobytes()
    swapped = array("I", entries)
    swapped.byteswap()
    return swapped.tobytes()
