"""Partitions and file systems of a guest's disk, to name what a range belongs to.

Sources: the UEFI specification (GPT), the layout of MBR partition tables, and the documentation
of the first sectors of ext, NTFS, FAT and exFAT. All numbers read from the disk are bounded.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vhdtool.image.salvage.ntfs import Read, ntfs_volumes
from vhdtool.vhd.units import SECTOR

_ENTRY = struct.Struct("<B3sB3sII")
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MOST = 128


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition. `start` and `length` in bytes; number 0 is a disk without a partition table.

    `system` is ext, ntfs, fat or exfat, or None for an unknown file system. `boot_copy`: the byte
    of the disk with the copy of NTFS's boot sector, where the boot sector itself is lost.
    """

    number: int
    start: int
    length: int
    name: str
    system: str | None
    boot_copy: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "start": self.start,
            "length": self.length,
            "name": self.name,
            "file_system": self.system,
            "boot_copy": self.boot_copy,
        }


def partitions(read: Read, size: int) -> list[Partition]:
    """All partitions of a disk of `size` bytes; one with number 0 when there is no table.

    Without a table NTFS is found by its boot sectors, which say where their volume begins.
    """
    system = file_system(read, 0)
    if system is not None:
        return [Partition(0, 0, size, "whole disk", system)]
    first = read(0, SECTOR)
    result = []
    if first[510:512] == b"\x55\xaa":
        kinds = [entry[2] for entry in _entries(first)]
        rows = _gpt(read) if _PROTECTIVE in kinds else _mbr(read, first)
        for number, start, length, name in rows:
            if 0 < start < size and length > 0:
                length = min(length, size - start)
                result.append(_partition(read, number, start, length, name))
    return result or _without_table(read, size) or [Partition(0, 0, size, "whole disk", None)]


def _partition(read: Read, number: int, start: int, length: int, name: str) -> Partition:
    system = file_system(read, start)
    if system is None and length > SECTOR:
        copy = start + length // SECTOR * SECTOR - SECTOR
        if file_system(read, copy) == "ntfs":
            return Partition(number, start, length, name, "ntfs", copy)
    return Partition(number, start, length, name, system)


def _without_table(read: Read, size: int) -> list[Partition]:
    return [
        Partition(number, one.start, one.length, "found by its boot sector", "ntfs", one.boot_copy)
        for number, one in enumerate(ntfs_volumes(read, size), 1)
    ]


def file_system(read: Read, start: int) -> str | None:
    """The file system that begins at byte `start`, or None."""
    head = read(start, 2048)
    if head[3:11] == b"NTFS    ":
        return "ntfs"
    if head[3:11] == b"EXFAT   ":
        return "exfat"
    if head[54:57] == b"FAT" or head[82:87] == b"FAT32":
        return "fat"
    return "ext" if head[1080:1082] == b"\x53\xef" else None


def _entries(sector: bytes) -> list[tuple[int, ...]]:
    return [_ENTRY.unpack_from(sector, 446 + 16 * index) for index in range(4)]


def _mbr(read: Read, first: bytes) -> Iterator[tuple[int, int, int, str]]:
    logical = 5
    for number, (_, _, kind, _, start, count) in enumerate(_entries(first), 1):
        if kind in _EXTENDED:
            for begin, length, inner in _logical(read, start):
                yield logical, begin * SECTOR, length * SECTOR, f"type 0x{inner:02x}"
                logical += 1
        elif kind:
            yield number, start * SECTOR, count * SECTOR, f"type 0x{kind:02x}"


def _logical(read: Read, base: int) -> Iterator[tuple[int, int, int]]:
    """(first sector, sectors, type) of each partition in a chain of extended tables."""
    table = base
    for _ in range(_MOST):
        sector = read(table * SECTOR, SECTOR)
        if sector[510:512] != b"\x55\xaa":
            return
        (_, _, kind, _, start, count), (_, _, _, _, following, _) = _entries(sector)[:2]
        if kind:
            yield table + start, count, kind
        if not following:
            return
        table = base + following


def _gpt(read: Read) -> Iterator[tuple[int, int, int, str]]:
    head = read(SECTOR, SECTOR)
    if head[:8] != b"EFI PART":
        return
    table, count, size = struct.unpack_from("<QII", head, 72)
    if not 128 <= size <= 4096:
        return
    raw = read(table * SECTOR, min(count, _MOST) * size)
    for number in range(len(raw) // size):
        entry = raw[number * size : (number + 1) * size]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and last >= first:
            name = entry[56:128].decode("utf-16-le", "replace").split("\0", 1)[0]
            yield number + 1, first * SECTOR, (last - first + 1) * SECTOR, name
