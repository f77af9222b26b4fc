"""The tables of a qcow2 image, read and counted here: mapping, COPIED flags, refcounts.

`qemu-img check` was asked when the image was recorded, and what it said is in check.json. That is
a statement about the evidence; this is the evidence. Source of the layout: docs/interop/qcow2.rst
of QEMU. All integers on disk are big-endian. Memory is bounded by MOST_CLUSTERS.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import CorruptImage
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.readers.image_view import View

SECTOR = 512
MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
PLACE = 0x00FFFFFFFFFFFE00
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
DIRTY, CORRUPT = 1, 2
PART = 512
"""Bytes of a table that are passed over at once where they are zeros."""
MOST_CLUSTERS = 1 << 22
"""Mapped clusters; the images of the lab have thousands."""
SHOWN = 200
"""Findings about refcounts; more say nothing new."""


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
    """A cluster that an L2 table maps to `place`; `zero`: it reads as zeros all the same."""

    place: int
    copied: bool
    zero: bool


class Tables:
    """All tables of one image. Raises CorruptImage for what cannot be read or is not served."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.header = _header(view)
        self.l1 = dict(self._l1())
        """Index -> entry of the L1 table as written, where it names an L2 table."""
        self.entries = dict(self._entries())
        """Guest cluster -> its entry."""

    @property
    def blocks(self) -> dict[int, int]:
        """Guest cluster -> where its data lies in the file, in bytes."""
        return {cluster: e.place for cluster, e in self.entries.items() if not e.zero}

    def _l1(self) -> Iterator[tuple[int, int]]:
        header = self.header
        raw = self.view.pread(header.l1_offset, header.l1_entries * 8)
        if len(raw) < header.l1_entries * 8:
            raise CorruptImage(f"{self.view.name}: the L1 table is cut off")
        for index, (entry,) in enumerate(struct.iter_unpack(">Q", raw)):
            if entry & PLACE:
                yield index, entry

    def _entries(self) -> Iterator[tuple[int, Entry]]:
        header, found = self.header, 0
        for index, l1_entry in self.l1.items():
            raw = self.view.pread(l1_entry & PLACE, header.cluster).ljust(header.cluster, b"\0")
            for at, entry in _used(raw):
                if entry & COMPRESSED:
                    raise CorruptImage(f"{self.view.name}: has compressed clusters, as no run has")
                if not entry & PLACE:
                    continue
                found += 1
                if found > MOST_CLUSTERS:
                    raise CorruptImage(f"{self.view.name}: maps more than {MOST_CLUSTERS} clusters")
                place = Entry(entry & PLACE, bool(entry & COPIED), bool(entry & ZERO))
                yield index * header.table_entries + at, place


def _used(table: bytes) -> Iterator[tuple[int, int]]:
    """(index, entry) of a table, where there is one; most of a table is empty."""
    for start in range(0, len(table), PART):
        part = table[start : start + PART]
        if part.strip(b"\0"):
            for at, (entry,) in enumerate(struct.iter_unpack(">Q", part), start // 8):
                if entry:
                    yield at, entry


def _header(view: View) -> Header:
    raw = view.pread(0, 112)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise CorruptImage(f"{view.name}: no qcow2 image (no header)")
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
        text = "names another file, is encrypted or has features that no run uses"
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
    """The mapping in the schema of the snapshots; a block is a cluster. Raises CorruptImage."""
    tables = Tables(view)
    header = tables.header
    bat = {str(cluster): place // SECTOR for cluster, place in tables.blocks.items()}
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
    """What contradicts itself in an image that everybody closed; and its data clusters.

    Each cluster of the file has as many users as its refcount says, a table or cluster with one
    user is marked COPIED, no two users share a place. More counted than used is a leak, and hurts
    nobody.
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
    """Who uses each cluster of the file, by its offset."""

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
        for index, (place,) in enumerate(struct.iter_unpack(">Q", raw[: len(raw) // 8 * 8])):
            if place & PLACE:
                self.refcount_blocks[index] = place & PLACE
                self._add(place & PLACE, f"refcount block {index}", "table-place")
        for index, entry in tables.l1.items():
            first = index * header.table_entries
            self._add(entry & PLACE, f"L2 table {index}", "table-place", first)
        for cluster, one in tables.entries.items():
            self._add(one.place, f"cluster {cluster}", "cluster-place", cluster)

    def _add(self, place: int, what: str, code: str, block: int | None = None) -> None:
        why = None
        if place >= self.size:
            why = f"behind the end of the file ({self.size} bytes)"
        elif place % self.cluster:
            why = "which is no cluster's beginning"
        elif place in self.user:
            why = f"where {self.user[place]} is"
        if why and len(self.findings) < SHOWN:
            text = f"{what} lies at byte {place}, {why}"
            self.findings.append(Finding(code, text, block=block, offset=place))
        self.count[place] += 1
        self.user.setdefault(place, what)


def _counts(tables: Tables, uses: _Uses) -> Iterator[Finding]:
    header = tables.header
    if header.dirty:
        yield Finding("refcounts-dirty", "the image says that its refcounts are not written")
    refcounts = _Refcounts(tables, uses)
    for place, used in sorted(uses.count.items()):
        counted = refcounts.of(place)
        what = uses.user[place]
        if counted < used:
            text = f"{what} at byte {place} has refcount {counted}, and {used} in use"
            yield Finding("refcount-low", text, offset=place, block=_block_of(what))
    for index, entry in tables.l1.items():
        yield from _flag(f"L2 table {index}", entry & PLACE, bool(entry & COPIED), refcounts)
    for cluster, one in tables.entries.items():
        yield from _flag(f"cluster {cluster}", one.place, one.copied, refcounts)
    for place, counted in refcounts.all():
        if counted and place not in uses.count:
            yield Finding("refcount-leak", f"byte {place} is counted and not in use", "info")


def _flag(what: str, place: int, copied: bool, refcounts: "_Refcounts") -> Iterator[Finding]:
    counted = refcounts.of(place)
    if counted and copied != (counted == 1):
        said = "is marked COPIED" if copied else "is not marked COPIED"
        text = f"{what} at byte {place} {said}, its refcount is {counted}"
        yield Finding("copied-flag", text, offset=place, block=_block_of(what))


def _block_of(what: str) -> int | None:
    kind, _, number = what.rpartition(" ")
    return int(number) if kind == "cluster" else None


class _Refcounts:
    """The refcounts as written; 0 where no block has them."""

    def __init__(self, tables: Tables, uses: _Uses) -> None:
        self.cluster, self.bits = tables.header.cluster, tables.header.refcount_bits
        self.in_block = self.cluster * 8 // self.bits
        self._blocks = {
            index: tables.view.pread(place, self.cluster).ljust(self.cluster, b"\0")
            for index, place in uses.refcount_blocks.items()
        }

    def of(self, place: int) -> int:
        index, at = divmod(place // self.cluster, self.in_block)
        block = self._blocks.get(index)
        return 0 if block is None else self._at(block, at)

    def _at(self, block: bytes, at: int) -> int:
        if self.bits >= 8:
            width = self.bits // 8
            return int.from_bytes(block[at * width : (at + 1) * width])
        # Smaller ones fill a byte from its low end.
        byte = block[at * self.bits // 8]
        return byte >> (at * self.bits % 8) & (1 << self.bits) - 1

    def all(self) -> Iterator[tuple[int, int]]:
        """(offset in the file, refcount) of each cluster that is counted."""
        for index, block in sorted(self._blocks.items()):
            for at in range(self.in_block):
                if counted := self._at(block, at):
                    yield (index * self.in_block + at) * self.cluster, counted
