"""Which places a BAT names, and whether they lie apart: a million of them in milliseconds.

Python's own loops cost a tenth of a second for each look at the table of 2040 GiB. Here the entries
of a chunk are the digits of one large number, in base 2**32, and one operation looks at all.
"""

import sys
from array import array

from vhdtool.vhd.bat import empty_bat, pack_bat, unpack_bat
from vhdtool.vhd.units import UNUSED

try:
    from vhdtool.image.metadata import _bat_sort
except ImportError:
    # It was not built, or for another machine: the slow way gives the same.
    _bat_sort = None  # type: ignore[assignment]

compiled = _bat_sort is not None
"""Whether the C module was built."""

CHUNK = 1 << 16
"""Entries that are looked at together."""
_MOST_SLOTS = 4
"""For each place; more of them would cost more than sorting."""
_NONE = UNUSED.to_bytes(4, "big")


def used_places(raw: bytes | bytearray, entries: int) -> "array[int]":
    """The first `entries` big-endian entries without those that are unused, in their order.

    >>> list(used_places(bytes.fromhex("00000005ffffffff00000003"), 3))
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
        # No used entry begins with 0xFF. A run of that may begin in the entry before; then it is
        # the same which bytes of it go.
        return chunk.replace(_NONE, b"")
    kept = array("I", filter(UNUSED.__ne__, unpack_bat(chunk, len(highest))))
    return pack_bat(kept)[: 4 * len(kept)]


def in_order(
    places: "array[int]", sectors: int, limit: int, use_c: bool = compiled
) -> tuple["array[int]", bool]:
    """(the places in rising order, whether they lie apart by at least so many sectors).

    It is quick for those that do and are below `limit`, in whatever order they come.
    """
    if apart(places, sectors):
        return places, True
    if use_c:
        ordered = array("I", places)
        _bat_sort.sort(ordered)
        return ordered, apart(ordered, sectors)
    return _slowly_in_order(places, sectors, limit)


def _slowly_in_order(places: "array[int]", sectors: int, limit: int) -> tuple["array[int]", bool]:
    shift = sectors.bit_length() - 1
    slots = (limit >> shift) + 1
    if slots <= _MOST_SLOTS * len(places):
        # Two places in one slot would overlap, so a slot for each sorts them. A shift takes half
        # the time of a division.
        table = empty_bat(slots)
        try:
            for place in places:
                table[place >> shift] = place
        except IndexError:
            pass
        else:
            found = used_places(pack_bat(table), slots)
            if len(found) == len(places):
                return found, apart(found, sectors)
    ordered = array("I", sorted(places))
    return ordered, apart(ordered, sectors)


def apart(places: "array[int]", sectors: int) -> bool:
    """Whether they rise by at least so many sectors each.

    >>> apart(array("I", [1, 5, 9]), 4), apart(array("I", [1, 5, 8]), 4)
    (True, False)
    """
    return all(
        _apart(places[first : first + CHUNK + 1], sectors)
        for first in range(0, len(places) - 1, CHUNK)
    )


def _apart(places: "array[int]", sectors: int) -> bool:
    raw = _little(places)
    count = len(places) - 1
    low, high = int.from_bytes(raw[:-4], "little"), int.from_bytes(raw[4:], "little")
    ones = int.from_bytes(b"\1\0\0\0" * count, "little")
    add = sectors * ones
    least = low + add
    # What a digit takes from the next one, or gives to it, shows in the lowest bit of that.
    lowest = ones << 32
    if (low ^ add ^ least) & lowest or high < least:
        return False
    return not (high ^ least ^ (high - least)) & lowest


def _little(places: "array[int]") -> bytes:
    if sys.byteorder == "little":
        return places.tobytes()
    swapped = array("I", places)
    swapped.byteswap()
    return swapped.tobytes()
