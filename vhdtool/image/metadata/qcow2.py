"""What a qcow2 image says of itself: its size, and where each of its clusters lies.

Reading only; QEMU writes such images. Source of the layout: docs/interop/qcow2.rst of QEMU. All
integers on disk are big-endian. Served are images of their own: nothing compressed, encrypted,
shared with an internal snapshot, or taken from another file, for an image that names a file would
have its reader open it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import CorruptImage, UnsupportedImage
from vhdtool.image.metadata.findings import CheckReport, Finding
from vhdtool.storage import Storage
from vhdtool.vhd.units import SECTOR

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
OFFSET = 0x00FFFFFFFFFFFE00
COMPRESSED = 1 << 62
CORRUPT, DATA_FILE, EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 4
MAX_L1 = 4 << 20
"""Entries: 32 MiB of table, QEMU's own limit."""


@dataclass(frozen=True)
class Qcow2:
    """The header: sizes in bytes, offsets in the file."""

    size: int
    cluster: int
    l1_offset: int
    l1_entries: int
    refcounts: int
    """Where the refcount table begins."""

    @property
    def table_entries(self) -> int:
        """Clusters that one L2 table maps."""
        return self.cluster // 8

    @property
    def clusters(self) -> int:
        return -(-self.size // self.cluster)


def read_header(storage: Storage) -> Qcow2:
    """Raises CorruptImage for what cannot be, UnsupportedImage for what is not served."""
    raw = storage.pread(0, 112)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise CorruptImage(f"{storage.name}: no qcow2 image (no header)")
    (_, version, backing, _, bits, size, crypt, l1_entries, l1_offset, refcounts, _, snapshots,
     _) = _HEADER.unpack_from(raw)  # fmt: skip
    incompatible = _FEATURES.unpack_from(raw, 72)[0] if version >= 3 and len(raw) == 112 else 0
    if version not in (2, 3) or not 9 <= bits <= 21:
        raise CorruptImage(f"{storage.name}: qcow2 version {version}, clusters of 2^{bits} bytes")
    header = Qcow2(size // SECTOR * SECTOR, 1 << bits, l1_offset, l1_entries, refcounts)
    for there, what in (
        (backing, "a backing file"),
        (crypt, "encryption"),
        (snapshots, "internal snapshots"),
        (incompatible & DATA_FILE, "its data in another file"),
        (incompatible & EXTENDED_L2, "subclusters"),
    ):
        if there:
            raise UnsupportedImage(
                f"{storage.name}: has {what}, which is not served; `qemu-img convert -O qcow2` "
                f"makes an image without"
            )
    if incompatible & CORRUPT:
        raise CorruptImage(f"{storage.name}: QEMU marked it as corrupt; see `qemu-img check`")
    needed = -(-header.clusters // header.table_entries)
    if l1_offset % header.cluster or not needed <= l1_entries <= MAX_L1 or not size:
        raise CorruptImage(f"{storage.name}: an L1 table of {l1_entries} entries at {l1_offset}")
    return header


def mapping(storage: Storage, header: Qcow2) -> dict[int, int]:
    """Guest cluster -> where it lies in the file, in bytes. Raises UnsupportedImage.

    A cluster that reads as zeros without data of its own is in no table, or marked so.
    """
    return {cluster: entry & OFFSET for cluster, entry in _entries(storage, header)}


def _entries(storage: Storage, header: Qcow2) -> Iterator[tuple[int, int]]:
    for index, table in tables(storage, header):
        raw = storage.pread(table, header.cluster).ljust(header.cluster, b"\0")
        if not raw.strip(b"\0"):
            continue
        for at, (entry,) in enumerate(struct.iter_unpack(">Q", raw)):
            if entry & COMPRESSED:
                raise UnsupportedImage(f"{storage.name}: has compressed clusters")
            if entry & OFFSET and not entry & 1:
                yield index * header.table_entries + at, entry


def tables(storage: Storage, header: Qcow2) -> Iterator[tuple[int, int]]:
    """(index, offset in the file) of each L2 table."""
    raw = storage.pread(header.l1_offset, header.l1_entries * 8)
    for index, (entry,) in enumerate(struct.iter_unpack(">Q", raw[: len(raw) // 8 * 8])):
        if entry & OFFSET:
            yield index, entry & OFFSET


def snapshot(storage: Storage) -> dict[str, Any]:
    """The mapping in the schema of `image.meta.snapshot`; a block is a cluster.

    QEMU keeps tables in memory until it flushes them: the file may know less than its writer. What
    it knew once it never forgets, unless somebody writes over it. An image that
    is damaged, or that names what is not served, is told as none: it was written over.
    """
    taken: dict[str, Any] = {
        "schema": 1,
        "file_size": storage.size(),
        "footer": None,
        "header": None,
        "bat": {},
        "bitmaps": {},
        "batmap": None,
    }
    try:
        header = read_header(storage)
        places = mapping(storage, header)
    except (CorruptImage, UnsupportedImage):
        return taken
    taken["header"] = {
        "block_bytes": header.cluster,
        "bat_offset": header.l1_offset,
        "max_entries": header.clusters,
        "parent_uuid": "",
    }
    taken["bat"] = {str(cluster): at // SECTOR for cluster, at in places.items()}
    taken["bitmaps"] = dict.fromkeys(taken["bat"])
    return taken


def check(storage: Storage) -> CheckReport:
    """What contradicts itself in the mapping: places that two share, or that are not there.

    Refcounts are left to `qemu-img check`. Raises CorruptImage, UnsupportedImage.
    """
    header = read_header(storage)
    end = storage.size()
    taken = {0: "the header", header.refcounts: "the refcount table"}
    for at in range(0, header.l1_entries * 8, header.cluster):
        taken[header.l1_offset + at] = "the L1 table"
    report = CheckReport(storage.name, "strict", blocks=header.clusters)
    for index, table in tables(storage, header):
        if table % header.cluster or table >= end or table in taken:
            text = f"L2 table {index} lies at byte {table}, " + _why(table, end, taken)
            first = index * header.table_entries
            report.findings.append(Finding("table-place", "corrupt", text, first, table))
        taken[table] = f"L2 table {index}"
    for cluster, place in mapping(storage, header).items():
        if place % header.cluster or place >= end or place in taken:
            text = f"cluster {cluster} lies at byte {place}, " + _why(place, end, taken)
            report.findings.append(Finding("cluster-place", "corrupt", text, cluster, place))
        taken[place] = f"cluster {cluster}"
        report.allocated += 1
    return report


def _why(place: int, end: int, taken: dict[int, str]) -> str:
    if place >= end:
        return f"behind the end of the file ({end} bytes)"
    return f"where {taken[place]} is" if place in taken else "which is no cluster's beginning"
