"""Anchors: structures in a guest's data that state where on the disk they are.

Sources: the UEFI specification (GPT), the documentation of the boot sectors of NTFS, exFAT and FAT
(each names the sector where its partition begins), and of ext's superblocks (each copy has the
number of its block group). All numbers read from the data are bounded by the caller.
"""

import struct
from collections.abc import Iterator

from vhdtool.vhd.units import SECTOR

Anchor = tuple[int, str]
"""(guest sector of the structure, what it is)."""
_USUAL_STARTS = (0, 63, 2048)
"""Guest sectors at which the first partition begins: none, as DOS does it, as everybody since."""
_LARGEST_EXT_POWER = 6
"""Blocks of 64 KiB; a block has 1024 << power bytes."""


def partition_starts(first: bytes) -> list[int]:
    """The first sectors of the partitions of an MBR; empty where `first` is none."""
    if len(first) < SECTOR or first[510:512] != b"\x55\xaa" or _is_boot_sector(first):
        return []
    starts = []
    for at in range(446, 510, 16):
        status, kind, start, count = struct.unpack_from("<B3xB3xII", first, at)
        if status not in (0, 0x80):
            return []
        if kind and start and count:
            starts.append(start)
    return starts


def _is_boot_sector(sector: bytes) -> bool:
    return sector[3:11] in (b"NTFS    ", b"EXFAT   ") or b"FAT" in (sector[54:57], sector[82:85])


def anchors(data: bytes, starts: list[int]) -> Iterator[tuple[int, list[Anchor]]]:
    """(sector within `data`, possible anchors) of each structure that states its position.

    `starts` has the known first sectors of partitions.
    """
    for at in _found(data, b"EFI PART", 0):
        own, other = struct.unpack_from("<QQ", data, at + 24)
        if other and own:
            yield at // SECTOR, [(own, "a GPT header")]
    for at in _found(data, b"NTFS    ", 3):
        (hidden,), (total,) = _u32(data, at + 28), _u64(data, at + 40)
        name = "the boot sector of NTFS"
        yield at // SECTOR, [(hidden, name), (hidden + total, f"the copy of {name}")]
    for at in _found(data, b"EXFAT   ", 3):
        (start,) = _u64(data, at + 64)
        name = "the boot sector of exFAT"
        yield at // SECTOR, [(start, name), (start + 12, f"the copy of {name}")]
    for at in _found(data, b"FAT32   ", 82):
        (hidden,), (copy,) = _u32(data, at + 28), struct.unpack_from("<H", data, at + 50)
        name = "the boot sector of FAT"
        yield at // SECTOR, [(hidden, name), (hidden + copy, f"the copy of {name}")]
    for at in _found(data, b"\x53\xef", 56):
        inside = _ext_sector(data[at : at + 2 * SECTOR])
        if inside is not None:
            options = starts or _USUAL_STARTS
            yield at // SECTOR, [(start + inside, "a superblock of ext") for start in options]


def _found(data: bytes, magic: bytes, offset: int) -> Iterator[int]:
    """Bytes at which whole sectors begin that have `magic` at `offset`."""
    at = data.find(magic)
    while at >= 0:
        if (at - offset) % SECTOR == 0 and 0 <= at - offset <= len(data) - SECTOR:
            yield at - offset
        at = data.find(magic, at + 1)


def _u32(data: bytes, at: int) -> tuple[int]:
    return struct.unpack_from("<I", data, at)


def _u64(data: bytes, at: int) -> tuple[int]:
    return struct.unpack_from("<Q", data, at)


def _ext_sector(block: bytes) -> int | None:
    """The sector of the file system at which this superblock of ext is; None if it is none."""
    if len(block) < 2 * SECTOR:
        return None
    inodes, blocks = struct.unpack_from("<II", block)
    first, power, _, in_group = struct.unpack_from("<IIII", block, 20)
    (state,) = struct.unpack_from("<H", block, 58)
    (group,) = struct.unpack_from("<H", block, 90)
    plausible = power <= _LARGEST_EXT_POWER and inodes and blocks and in_group and state <= 7
    if not plausible or first != (power == 0) or in_group > 8 << (10 + power):
        return None
    start = (first + group * in_group) << (10 + power)
    return int(start if group else 1024) // SECTOR
