"""A reader of qcow2 images, written from the format alone: its tables and its disk.

`qemu-img check` ran when the image was recorded, and check.json has its report. The oracle does not
rely on that report: it reads mapping, COPIED flags and refcounts itself. Source of the layout:
docs/interop/qcow2.rst of QEMU. All integers on disk are big-endian. Memory is bounded by
MOST_CLUSTERS. tests/interop compares the disk with qemu-img.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import CorruptImage
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.readers.image_view import View
from vhdtool.oracle.readers.vhd import data_chunks

SECTOR = 512
MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
OFFSET_BITS = 0x00FFFFFFFFFFFE00
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
DIRTY, CORRUPT = 1, 2
PART = 512
"""Bytes of a table that are skipped at once if they are zeros."""
MOST_CLUSTERS = 1 << 22
"""The largest number of mapped clusters; images of the lab have thousands."""
SHOWN = 200
"""Findings that are listed at most."""


@dataclass(frozen=True)
class Header:
    """Sizes in bytes, offsets in the file."""

    size: int
    cluster: int
    l1_offset: int
    l1_entries: int
    refcounts: int
    refcount_clusters: int
    refcount_bits: int
    dirty: bool

    @property
    def table_entries(self) -> int:
        """Clusters that one L2 table maps."""
        return self.cluster // 8

    @property
    def clusters(self) -> int:
        return -(-self.size // self.cluster)


@dataclass(frozen=True)
class Entry:
    """An L2 entry: a cluster at byte `offset`. `zero`: the cluster reads as zeros all the same."""

    offset: int
    copied: bool
    zero: bool


class Tables:
    """All tables of one image. Raises CorruptImage if they are damaged or not supported."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.header = _header(view)
        self.l1 = dict(self._l1())
        """Index -> entry of the L1 table, if it names an L2 table."""
        self.entries = dict(self._entries())
        """Guest cluster -> its L2 entry."""

    @property
    def blocks(self) -> dict[int, int]:
        """Guest cluster -> offset of its data in the file."""
        return {cluster: e.offset for cluster, e in self.entries.items() if not e.zero}

    def _l1(self) -> Iterator[tuple[int, int]]:
        header = self.header
        raw = self.view.pread(header.l1_offset, header.l1_entries * 8)
        if len(raw) < header.l1_entries * 8:
            raise CorruptImage(f"{self.view.name}: the L1 table is cut off")
        for index, (entry,) in enumerate(struct.iter_unpack(">Q", raw)):
            if entry & OFFSET_BITS:
                yield index, entry

    def _entries(self) -> Iterator[tuple[int, Entry]]:
        header, found = self.header, 0
        for index, l1_entry in self.l1.items():
            raw = self.view.pread(l1_entry & OFFSET_BITS, header.cluster).ljust(
                header.cluster, b"\0"
            )
            for at, entry in _used(raw):
                if entry & COMPRESSED:
                    raise CorruptImage(f"{self.view.name}: has compressed clusters")
                if not entry & OFFSET_BITS:
                    continue
                found += 1
                if found > MOST_CLUSTERS:
                    raise CorruptImage(f"{self.view.name}: maps more than {MOST_CLUSTERS} clusters")
                one = Entry(entry & OFFSET_BITS, bool(entry & COPIED), bool(entry & ZERO))
                yield index * header.table_entries + at, one


def _used(table: bytes) -> Iterator[tuple[int, int]]:
    """(index, entry) of the entries of a table that are not zero; most of a table is empty."""
    for start in range(0, len(table), PART):
        part = table[start : start + PART]
        if part.strip(b"\0"):
            for at, (entry,) in enumerate(struct.iter_unpack(">Q", part), start // 8):
                if entry:
                    yield at, entry


def _header(view: View) -> Header:
    raw = view.pread(0, 112)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise CorruptImage(f"{view.name}: not a qcow2 image, it has no header")
    (_, version, backing, _, bits, size, crypt, l1_entries, l1_offset, refcounts,
     refcount_clusters, snapshots, _) = _HEADER.unpack_from(raw)  # fmt: skip
    features, order = 0, 4
    if version >= 3 and len(raw) >= 104:
        features, _, _, order, _ = _FEATURES.unpack_from(raw, 72)
    if version not in (2, 3) or not 9 <= bits <= 21 or order > 6:
        raise CorruptImage(f"{view.name}: qcow2 version {version}, clusters of 2^{bits} bytes")
    if features & CORRUPT:
        raise CorruptImage(f"{view.name}: QEMU marked it as corrupt")
    if backing or crypt or snapshots or features & ~(DIRTY | CORRUPT):
        text = "has a backing file, encryption, internal snapshots or unknown features"
        raise CorruptImage(f"{view.name}: {text}")
    header = Header(
        size // SECTOR * SECTOR, 1 << bits, l1_offset, l1_entries, refcounts, refcount_clusters,
        1 << order, bool(features & DIRTY),
    )  # fmt: skip
    needed = -(-header.clusters // header.table_entries)
    if l1_offset % header.cluster or not needed <= l1_entries <= 4 << 20 or not size:
        raise CorruptImage(f"{view.name}: an L1 table of {l1_entries} entries at {l1_offset}")
    return header


def meta_of(view: View) -> dict[str, Any]:
    """The mapping as a metadata dump; its blocks are clusters. Raises CorruptImage."""
    tables = Tables(view)
    header = tables.header
    bat = {str(cluster): offset // SECTOR for cluster, offset in tables.blocks.items()}
    return {
        "schema": 1,
        "file_size": view.size(),
        "footer": None,
        "header": {
            "block_bytes": header.cluster,
            "bat_offset": header.l1_offset,
            "max_entries": header.clusters,
            "parent_uuid": "",
        },
        "bat": bat,
        "bitmaps": dict.fromkeys(bat),
        "batmap": None,
    }


def examine(view: View) -> tuple[list[Finding], int]:
    """(findings about a closed image, number of its data clusters). Raises CorruptImage.

    Each cluster of the file has as many users as its refcount says, a table or cluster with one
    user is marked COPIED, and no two users share a cluster. A refcount that is too high is a leak
    and no damage.
    """
    tables = Tables(view)
    uses = _Uses(tables)
    findings = [*uses.findings]
    for item in _counts(tables, uses):
        findings.append(item)
        if len(findings) >= SHOWN:
            break
    return findings, len(tables.blocks)


class _Uses:
    """The users of each cluster of the file, by its offset."""

    def __init__(self, tables: Tables) -> None:
        header, view = tables.header, tables.view
        self.size, self.cluster = view.size(), header.cluster
        self.count: Counter[int] = Counter()
        self.user: dict[int, str] = {}
        self.findings: list[Finding] = []
        self.refcount_blocks: dict[int, int] = {}
        self._add(0, "the header", "table-place")
        for at in range(header.refcount_clusters):
            self._add(header.refcounts + at * self.cluster, "the refcount table", "table-place")
        for at in range(0, header.l1_entries * 8, self.cluster):
            self._add(header.l1_offset + at, "the L1 table", "table-place")
        raw = view.pread(header.refcounts, min(header.refcount_clusters, 64) * self.cluster)
        for index, (entry,) in enumerate(struct.iter_unpack(">Q", raw[: len(raw) // 8 * 8])):
            if entry & OFFSET_BITS:
                self.refcount_blocks[index] = entry & OFFSET_BITS
                self._add(entry & OFFSET_BITS, f"refcount block {index}", "table-place")
        for index, entry in tables.l1.items():
            first = index * header.table_entries
            self._add(entry & OFFSET_BITS, f"L2 table {index}", "table-place", first)
        for cluster, one in tables.entries.items():
            self._add(one.offset, f"cluster {cluster}", "cluster-place", cluster)

    def _add(self, offset: int, what: str, code: str, block: int | None = None) -> None:
        why = None
        if offset >= self.size:
            why = f"after the end of the file ({self.size} bytes)"
        elif offset % self.cluster:
            why = "which is not a cluster boundary"
        elif offset in self.user:
            why = f"where {self.user[offset]} is"
        if why and len(self.findings) < SHOWN:
            text = f"{what} is at byte {offset}, {why}"
            self.findings.append(Finding(code, text, block=block, offset=offset))
        self.count[offset] += 1
        self.user.setdefault(offset, what)


def _counts(tables: Tables, uses: _Uses) -> Iterator[Finding]:
    header = tables.header
    if header.dirty:
        yield Finding("refcounts-dirty", "the header is marked dirty: refcounts are not written")
    refcounts = _Refcounts(tables, uses)
    for offset, used in sorted(uses.count.items()):
        counted = refcounts.of(offset)
        what = uses.user[offset]
        if counted < used:
            text = f"{what} at byte {offset} has refcount {counted}, its number of users is {used}"
            yield Finding("refcount-low", text, offset=offset, block=_block_of(what))
    for index, entry in tables.l1.items():
        yield from _flag(f"L2 table {index}", entry & OFFSET_BITS, bool(entry & COPIED), refcounts)
    for cluster, one in tables.entries.items():
        yield from _flag(f"cluster {cluster}", one.offset, one.copied, refcounts)
    for offset, counted in refcounts.all():
        if counted and offset not in uses.count:
            text = f"the cluster at byte {offset} has refcount {counted}, but is not used"
            yield Finding("refcount-leak", text, "info")


def _flag(what: str, offset: int, copied: bool, refcounts: "_Refcounts") -> Iterator[Finding]:
    counted = refcounts.of(offset)
    if counted and copied != (counted == 1):
        text = f"{what} at byte {offset} is {'' if copied else 'not '}marked COPIED, "
        text += f"but its refcount is {counted}"
        yield Finding("copied-flag", text, offset=offset, block=_block_of(what))


def _block_of(what: str) -> int | None:
    kind, _, number = what.rpartition(" ")
    return int(number) if kind == "cluster" else None


def refcount_at(block: bytes, index: int, bits: int) -> int:
    """A refcount of `bits` bits in a refcount block."""
    if bits >= 8:
        width = bits // 8
        return int.from_bytes(block[index * width : (index + 1) * width])
    # Smaller refcounts fill a byte from its low end.
    byte = block[index * bits // 8]
    return byte >> (index * bits % 8) & (1 << bits) - 1


class _Refcounts:
    """The refcounts as written; 0 for a cluster without a refcount block."""

    def __init__(self, tables: Tables, uses: _Uses) -> None:
        self.cluster, self.bits = tables.header.cluster, tables.header.refcount_bits
        self.in_block = self.cluster * 8 // self.bits
        self._blocks = {
            index: tables.view.pread(offset, self.cluster).ljust(self.cluster, b"\0")
            for index, offset in uses.refcount_blocks.items()
        }

    def of(self, offset: int) -> int:
        """The refcount of the cluster at that offset."""
        index, at = divmod(offset // self.cluster, self.in_block)
        block = self._blocks.get(index)
        return 0 if block is None else refcount_at(block, at, self.bits)

    def all(self) -> Iterator[tuple[int, int]]:
        """(offset, refcount) of each cluster whose refcount is not 0."""
        for index, block in sorted(self._blocks.items()):
            for at in range(self.in_block):
                if counted := refcount_at(block, at, self.bits):
                    yield (index * self.in_block + at) * self.cluster, counted


class Qcow2Reader:
    """The disk inside a qcow2 image. Raises CorruptImage.

    `blocks`: guest cluster -> offset of its data in the file.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.tables = Tables(view)
        self.header = self.tables.header
        self.disk_sectors = self.header.size // SECTOR
        self.block_sectors = self.header.cluster // SECTOR
        self.blocks = self.tables.blocks

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """(first sector, bytes) of all data in rising order; everything else reads as zeros."""
        for cluster, offset in sorted(self.blocks.items()):
            first = cluster * self.block_sectors
            count = min(self.block_sectors, self.disk_sectors - first)
            for sector, data in data_chunks(self.view, offset, [(0, count)]):
                yield first + sector, data

    def locate(self, sector: int) -> int | None:
        """Offset of a sector in the file; None if it reads as zeros."""
        cluster, inside = divmod(sector, self.block_sectors)
        offset = self.blocks.get(cluster)
        return None if offset is None else offset + inside * SECTOR

    def entry(self, cluster: int) -> int | None:
        """Offset of the L2 entry of a cluster in the file; None if it has no L2 table."""
        index, at = divmod(cluster, self.header.table_entries)
        table = self.tables.l1.get(index)
        return None if table is None else (table & OFFSET_BITS) + 8 * at


def entry_bytes(offset: int) -> bytes:
    """The L2 entry of a cluster with one user; 0 for none."""
    return struct.pack(">Q", offset | COPIED if offset else 0)
