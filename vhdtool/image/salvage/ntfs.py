"""NTFS volumes without a partition table, found by their boot sectors.

NTFS has a copy of its boot sector in the last sector of the partition. Both say how many sectors
the volume has, and where on the disk it begins (source: the documentation of ntfs-3g and
libfsntfs).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vhdtool.vhd.units import GIB, MIB, SECTOR

Read = Callable[[int, int], bytes]
"""(byte offset, length) -> guest bytes, fewer at the end of the disk."""
_DOS_START = 63
_DOS_CYLINDER = 255 * 63
_SEARCHED = 64 * GIB
"""Bytes from the start of the disk in which a partition may begin or end; and the last 16 MiB."""
_LAST = 16 * MIB


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume, in bytes of the disk. `boot_copy`: that of its boot sector, where that is lost."""

    start: int
    length: int
    boot_copy: int | None


def ntfs_volumes(read: Read, size: int) -> list[Volume]:
    """The volumes of which a boot sector is where a partition usually begins or ends, in order.

    One that names another start counts if the master file table is where it says.
    """
    found: dict[int, Volume] = {}
    for sector in sorted(set(_usual_sectors(size // SECTOR))):
        boot = read(sector * SECTOR, SECTOR)
        if boot[3:11] != b"NTFS    " or boot[510:512] != b"\x55\xaa":
            continue
        (hidden,), (total,) = struct.unpack_from("<I", boot, 28), struct.unpack_from("<Q", boot, 40)
        for start in (sector, sector - total):
            end = (start + total + 1) * SECTOR
            right = start == hidden or _has_file_table(read, boot, start)
            if not (start >= 0 and total > 0 and end <= size and right):
                continue
            copy = None if start == sector else sector * SECTOR
            found.setdefault(start, Volume(start * SECTOR, end - start * SECTOR, copy))
            break
    return [found[start] for start in sorted(found)]


def _usual_sectors(sectors: int) -> Iterator[int]:
    """Sectors where partitions begin, and those before them: at each MiB, or as DOS did it."""
    first = min(sectors, _SEARCHED // SECTOR)
    for step, stop in ((MIB // SECTOR, first), (_DOS_CYLINDER, first)):
        for start in range(0, stop, step):
            yield from (one for one in (start - 1, start) if one >= 0)
    yield _DOS_START
    for start in range(max(sectors - _LAST // SECTOR, 0) // 2048 * 2048, sectors, MIB // SECTOR):
        yield from (one for one in (start - 1, start) if one >= 0)
    # The last partition often ends where the disk does, or before the copy of a GPT.
    yield from (one for one in (sectors - 1, sectors - 34) if one >= 0)


def _has_file_table(read: Read, boot: bytes, start: int) -> bool:
    """Whether the master file table, or its mirror, begins where the boot sector says."""
    if start < 0:
        return False
    sector_bytes, per_cluster = struct.unpack_from("<HB", boot, 11)
    # Above 128 the field is a power of two, negated.
    cluster = sector_bytes * (per_cluster if per_cluster <= 0x80 else 1 << (256 - per_cluster))
    tables = struct.unpack_from("<QQ", boot, 48)
    return any(read(start * SECTOR + one * cluster, 4) == b"FILE" for one in tables)
