"""The block allocation table as an array of unsigned 32-bit sector offsets."""

import sys
from array import array

from vhdtool.vhd.units import SECTOR, UNUSED, pad

ENTRIES_PER_SECTOR = SECTOR // 4


def unpack_bat(raw: bytes | bytearray | memoryview, entries: int) -> "array[int]":
    """The first `entries` entries of `raw`; the padding behind them is ignored."""
    table = array("I")
    table.frombytes(raw[: 4 * entries])
    if sys.byteorder == "little":
        table.byteswap()
    return table


def pack_bat(table: "array[int]", fill: int = 0) -> bytes:
    """The table in file order, padded to a sector (blktap pads with zeros)."""
    copy = array("I", table)
    if sys.byteorder == "little":
        copy.byteswap()
    raw = copy.tobytes()
    return raw.ljust(pad(len(raw)), bytes([fill]))


def pack_bat_sector(table: "array[int]", entry: int, fill: int = 0) -> tuple[int, bytes]:
    """(index of the 512-byte sector within the BAT that holds `entry`, its bytes)."""
    sector = entry // ENTRIES_PER_SECTOR
    first = sector * ENTRIES_PER_SECTOR
    return sector, pack_bat(table[first : first + ENTRIES_PER_SECTOR], fill)


def empty_bat(entries: int) -> "array[int]":
    """A table in which no block is allocated."""
    return array("I", [UNUSED]) * entries
