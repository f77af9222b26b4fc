"""Faults to plant in a copy of the image, each with the place that its finding must name.

Places are chosen where the record is undamaged, so that a fault is news in a corrupt record too.
Nothing is copied: image faults are a few bytes laid over the file's view.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vhdtool.oracle.case import Case
from vhdtool.oracle.content import Load, disk_in
from vhdtool.oracle.depth import DEEP
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.qcow2 import Qcow2Reader, entry_bytes
from vhdtool.oracle.reader import UNUSED, DynamicReader, open_reader
from vhdtool.oracle.schedule import SECTOR, Schedule
from vhdtool.oracle.view import OverlayView, View

_ZERO = bytes(SECTOR)


@dataclass(frozen=True)
class Fault:
    """`evidence` has the fault in it; `names` tells a finding that points at its place."""

    oracle: str
    name: str
    evidence: Evidence
    names: Callable[[Finding], bool]


def content_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """Data that is lost, old, of another place or run, or that nobody wrote.

    All of it is planted in one copy of the image, each fault in a place of its own: reading the
    whole image is what costs.
    """
    case, view = evidence.record.case, evidence.view
    if case is None or view is None or evidence.kind == "raw":
        return
    reader = disk_in(view, evidence.kind)
    if not isinstance(reader, DynamicReader | Qcow2Reader):
        return
    load = Load.of(case, evidence.console)
    patches: dict[int, bytes] = {}
    named: list[tuple[str, Callable[[Finding], bool]]] = []

    def healthy(sector: int) -> int | None:
        """The byte in the file of an undamaged, acknowledged sector."""
        at = None if sector in judged.content.damaged else reader.locate(sector)
        if (
            at is None
            or at in patches
            or view.pread(at, SECTOR) != load.schedule.sector_content(load.last[sector], sector)
        ):
            return None
        return at

    def plant(name: str, order: Iterable[int], data: Callable[[int], bytes]) -> None:
        for sector in order:
            if (at := healthy(sector)) is not None:
                patches[at] = data(sector)
                named.append((name, _covers("lost", sector)))
                break

    content = load.schedule.sector_content
    oldest = sorted(load.last, key=lambda sector: (load.last[sector], sector))
    lowest = sorted(load.last)
    plant("dropped-ack-early", oldest, lambda sector: bytes(SECTOR))
    plant("dropped-ack-late", reversed(oldest), lambda sector: bytes(SECTOR))
    plant("lowest-sector", lowest, lambda sector: bytes(SECTOR))
    plant("highest-sector", reversed(lowest), lambda sector: bytes(SECTOR))
    older = dict(_rewritten(load))
    plant("stale-data", older, lambda sector: content(older[sector], sector))
    other_run = Schedule(case.seed + 1, load.schedule.disk_sectors, load.schedule.block_sectors)
    plant("of-another-run", oldest, lambda at: other_run.sector_content(load.last[at], at))
    plant("of-another-place", oldest, lambda at: content(load.last[at], at + 1))
    plant("of-no-write", oldest, lambda at: content(1 << 35, at))
    plant("strange-data", oldest, lambda at: content(load.last[at], at)[:-1] + b"?")
    placed = _nobody_s(load, reader, view, judged, healthy)
    for name, code, sector, changes in placed:
        patches.update(changes)
        named.append((name, _covers(code, sector)))
    changed = replace(
        evidence,
        view=OverlayView(view, list(patches.items())),
        console=replace(evidence.console, bad=[*evidence.console.bad, (0, 0)]),
        missing=(*evidence.missing, "planted: missing"),
    )
    named.append(("heard-bad", lambda f: f.code == "readback-bad" and f.sectors == (0, 1)))
    named.append(("heard-missing", lambda f: f.message == "planted: missing"))
    for name, names in named:
        yield Fault("content", name, changed, names)
    yield from _other_disk(evidence, case, isinstance(reader, DynamicReader))


def _other_disk(evidence: Evidence, case: Case, blocks: bool) -> Iterator[Fault]:
    """An image of another size than the case's, which is not compared; the guest is still heard."""
    console = replace(
        evidence.console,
        problems=[*evidence.console.problems, "planted: torn"],
        errors=[*evidence.console.errors, (0, 5)],
    )
    other = replace(case, image_bytes=case.image_bytes - SECTOR)
    changed = replace(evidence, record=replace(evidence.record, case=other), console=console)
    yield Fault("content", "disk-other", changed, lambda f: f.code == "size")
    yield Fault("content", "heard-torn", changed, lambda f: f.message == "planted: torn")
    yield Fault("content", "heard-error", changed, lambda f: f.code == "io-error")
    if blocks:
        other = replace(case, block_bytes=case.block_bytes * 2)
        changed = replace(evidence, record=replace(evidence.record, case=other))
        yield Fault("content", "blocks-other", changed, lambda f: f.code == "size")


def _nobody_s(
    load: Load,
    reader: DynamicReader | Qcow2Reader,
    view: View,
    judged: Judged,
    healthy: Callable[[int], int | None],
) -> Iterator[tuple[str, str, int, dict[int, bytes]]]:
    """(name, code, sector, patches) of data where nobody wrote: shown, and hidden."""
    if isinstance(reader, Qcow2Reader):
        for sector, (at, data) in _shown_twice(load, reader, healthy):
            yield "never-written", "never-written", sector, {at: data}
            return
        return
    for sector, zeroed in _zeroed(load, reader, view):
        undone = {zeroed: load.schedule.sector_content(DEEP, sector)}
        yield "zeroes-undone", "never-written", sector, undone
        break
    free = list(_unwritten(load, reader, view, judged))
    clear = [sector for sector in free[1:] if reader.locate(sector) is None]
    for name, sector in (*(("never-written", s) for s in free[:1]),
                         *(("hidden-data", s) for s in clear[:1])):  # fmt: skip
        block, inside = divmod(sector, reader.block_sectors)
        at = reader.blocks[block] * SECTOR
        foreign = load.schedule.sector_content(1 << 35, sector)
        changes = {at + reader.bitmap_bytes + inside * SECTOR: foreign}
        if name == "never-written":
            bits = reader.bitmap(block)[inside // 8] | 0x80 >> inside % 8
            changes[at + inside // 8] = bytes([bits])
        yield name, name, sector, changes


def _covers(code: str, sector: int) -> Callable[[Finding], bool]:
    def names(finding: Finding) -> bool:
        first, count = finding.sectors or (0, 0)
        return finding.code == code and first <= sector < first + count

    return names


def _rewritten(load: Load) -> Iterator[tuple[int, int]]:
    """(sector, older acknowledged write) where a sector was written more than once."""
    seen: dict[int, int] = {}
    for n, (first, count) in sorted(load.extents.items()):
        for sector in range(first, first + count):
            if sector in seen and load.last[sector] == n:
                yield sector, seen[sector]
            seen[sector] = n


def _zeroed(load: Load, reader: DynamicReader, view: View) -> Iterator[tuple[int, int]]:
    """(sector, byte in the file) where zeroes were written, and nothing after them."""
    freed = load.deep.freed if load.deep is not None else {}
    for sector, before in freed.items():
        at = reader.locate(sector)
        if before < 0 and at is not None and view.pread(at, SECTOR) == _ZERO:
            yield sector, at


def _unwritten(load: Load, reader: DynamicReader, view: View, judged: Judged) -> Iterator[int]:
    """Sectors of allocated blocks that read as zeros, and where nothing was ever acknowledged."""
    for block in reader.blocks:
        first = block * reader.block_sectors
        for sector in range(first, min(first + reader.block_sectors, reader.disk_sectors)):
            known = sector in load.last or sector in judged.content.damaged
            at = reader.locate(sector)
            if not known and (at is None or not view.pread(at, SECTOR).strip(b"\0")):
                yield sector
                break


def _shown_twice(
    load: Load, reader: Qcow2Reader, healthy: Callable[[int], int | None]
) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """(sector, patch): a cluster in which nothing is gets the place of one that has data."""
    source = next((at for sector in load.last if (at := healthy(sector)) is not None), None)
    if source is None:
        return
    place = source // reader.header.cluster * reader.header.cluster
    for cluster in range(reader.header.clusters):
        entry = reader.entry(cluster)
        first = cluster * reader.block_sectors
        sectors = range(first, first + reader.block_sectors)
        if entry is None or cluster in reader.blocks or load.last.keys() & set(sectors):
            continue
        yield first + (source - place) // SECTOR, (entry, entry_bytes(place))


def qcow2_faults(evidence: Evidence, view: View, judged: Judged) -> Iterator[Fault]:
    """A closed qcow2 image that its snapshots, its own tables and qemu-img contradict."""
    reader = Qcow2Reader(view)
    sound = sorted(reader.blocks.keys() - damaged_blocks(judged))
    last = evidence.record.snapshots[-1:]

    def entry(cluster: int, place: int) -> View:
        at = reader.entry(cluster)
        assert at is not None
        return OverlayView(view, [(at, entry_bytes(place))])

    then = {b for s in last for b in bat_of(s.meta)}
    if last and last[0].point == "all-closed":
        for cluster in [c for c in sound if str(c) in then][:1]:
            changed = evidence.with_view(entry(cluster, 0))
            yield Fault("metadata", "image-entry-gone", changed, names_block("image-bat", cluster))
    yield from _qcow2_structure(evidence, view, reader, sound)


def _qcow2_structure(
    evidence: Evidence, view: View, reader: Qcow2Reader, sound: list[int]
) -> Iterator[Fault]:
    """Tables, refcounts and flags that contradict one another, and what qemu-img said."""
    told = evidence.record.checked
    if len(sound) < 6 or told is None or told.get("corruptions"):
        return
    one, other, far, odd, alone, shared = (sound[n * (len(sound) - 1) // 5] for n in range(6))
    blocks, cluster = reader.blocks, reader.header.cluster
    size = -(-view.size() // cluster) * cluster
    first = int.from_bytes(view.pread(reader.header.refcounts, 8), "big")
    width = reader.header.refcount_bits // 8

    def entry(block: int, data: bytes) -> tuple[int, bytes]:
        at = reader.entry(block)
        assert at is not None
        return at, data

    patches = [
        entry(other, entry_bytes(blocks[one])),
        entry(far, entry_bytes(size + 8 * cluster)),
        entry(odd, entry_bytes(blocks[odd] + SECTOR)),
        entry(shared, blocks[shared].to_bytes(8, "big")),
        (first + blocks[alone] // cluster * width, bytes(width)),
        (79, b"\1"),
    ]
    counts = {"corruptions": 1, "check-errors": 1, "allocated-clusters": 0}
    record = replace(evidence.record, checked={**told, **counts})
    changed = replace(evidence, view=OverlayView(view, patches), record=record)
    for name, names in (
        ("overlap", lambda f: f.code == "cluster-place" and f.block in (one, other)),
        ("entry-past-end", names_block("cluster-place", far)),
        ("entry-odd", names_block("cluster-place", odd)),
        ("copied-flag", names_block("copied-flag", shared)),
        ("refcount-zero", names_block("refcount-low", alone)),
        ("refcounts-dirty", lambda f: f.code == "refcounts-dirty"),
        ("qemu-img-says-so", lambda f: f.code == "qemu-img-corruptions"),
        ("qemu-img-failed", lambda f: f.code == "qemu-img-check-errors"),
        ("another-image-checked", lambda f: f.code == "other-check"),
    ):
        yield Fault("structure", name, changed, names)
    index = max(reader.tables.l1)
    table = OverlayView(
        view, [(reader.header.l1_offset + 8 * index, entry_bytes(size + 8 * cluster))]
    )
    changed = replace(evidence, view=table, record=replace(record, checked=None))
    yield Fault("structure", "table-place", changed, lambda f: f.code == "table-place")
    yield Fault("structure", "unchecked", changed, lambda f: f.code == "missing")


def image_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """A closed image that its snapshots and its own structure contradict."""
    view = evidence.view
    if view is None or evidence.kind == "raw":
        return
    if evidence.kind == "qcow2":
        yield from qcow2_faults(evidence, view, judged)
        return
    reader = open_reader(view)
    if not isinstance(reader, DynamicReader):
        return
    sound = sorted(reader.blocks.keys() - damaged_blocks(judged))
    then = {b for s in evidence.record.snapshots[-1:] for b in bat_of(s.meta)}
    last = evidence.record.snapshots[-1:]

    def entry(block: int, sector: int) -> View:
        return OverlayView(view, [(reader.bat_offset + 4 * block, sector.to_bytes(4, "big"))])

    if last and last[0].point == "all-closed":
        for block in [b for b in sound if str(b) in then][:1]:
            changed = evidence.with_view(entry(block, UNUSED))
            yield Fault("metadata", "image-entry-gone", changed, names_block("image-bat", block))
        if not _has(judged.metadata.findings, "image-footer"):
            changed = evidence.with_view(foreign_footer(view))
            yield Fault("metadata", "swapped-footer", changed, lambda f: f.code == "image-footer")
    footers = not _has(judged.structure.findings, "footer")
    if len(sound) >= 5:
        yield from _layout(evidence, view, reader, sound, footers)
    if footers:
        torn = OverlayView(view, [(0, bytes(SECTOR)), (SECTOR + 60, b"?")])
        changed = replace(evidence, view=torn)
        yield Fault("structure", "footer-copy-gone", changed, lambda f: "footer-copy" in f.code)
        yield Fault("structure", "header-torn", changed, lambda f: f.code.startswith("header"))
        foreign, full = _overstated(foreign_footer(view), reader, sound)
        changed = replace(evidence, view=foreign)
        yield Fault("structure", "foreign-footer", changed, lambda f: f.code.startswith("footer"))
        if full is not None:
            yield Fault("structure", "batmap-overstates", changed, names_block(None, full))


def _layout(
    evidence: Evidence, view: View, reader: DynamicReader, sound: list[int], footers: bool
) -> Iterator[Fault]:
    """Entries of the BAT that point at one another, behind the end and at the metadata.

    In the same copy the footer at the end is gone, and the sum of the batmap is wrong: checking an
    image costs most of what a judgement does.
    """
    one, far, front, other = sound[0], sound[len(sound) // 2], sound[1], sound[-1]
    entries = (
        (other, reader.blocks[one] + 1), (far, view.size() // SECTOR + 8), (front, 1),
    )  # fmt: skip
    bat = reader.bat_offset
    patches = [(bat + 4 * block, at.to_bytes(4, "big")) for block, at in entries]
    patches.append((view.size() - SECTOR, bytes(SECTOR)))
    batmap = _batmap(view, reader)
    if batmap is not None:
        patches.append((batmap[0] + 24, (batmap[2] ^ 1).to_bytes(4, "big")))
    changed = replace(evidence, view=OverlayView(view, patches))
    yield Fault("structure", "overlap", changed, lambda f: f.block in (one, other))
    yield Fault("structure", "entry-past-end", changed, names_block(None, far))
    yield Fault("structure", "entry-on-metadata", changed, names_block(None, front))
    if footers:
        yield Fault("structure", "footer-gone", changed, lambda f: f.code.startswith("footer"))
    if batmap is not None:
        yield Fault("structure", "batmap-checksum", changed, lambda f: f.code == "batmap-checksum")


def _batmap(view: View, reader: DynamicReader) -> tuple[int, int, int] | None:
    """(byte of the batmap's header, byte of its bits, their sum), where it has them."""
    tables = view.pread(0, min(reader.blocks.values()) * SECTOR)
    at = tables.find(b"tdbatmap")
    total = int.from_bytes(tables[at + 24 : at + 28], "big") if at >= 0 else 0
    return (at, int.from_bytes(tables[at + 8 : at + 16], "big"), total) if total else None


def _overstated(view: View, reader: DynamicReader, sound: list[int]) -> tuple[View, int | None]:
    """The image with a batmap that says of a block that all of it is there, and its number."""
    batmap = _batmap(view, reader)
    if batmap is None:
        return view, None
    header, bits, total = batmap
    for block in sound:
        at, bit = bits + block // 8, 0x80 >> block % 8
        byte = view.pread(at, 1)[0]
        if not byte & bit and b"\0" in reader.bitmap(block):
            less = ((total - bit) & 0xFFFFFFFF).to_bytes(4, "big")
            return OverlayView(view, [(at, bytes([byte | bit])), (header + 24, less)]), block
    return view, None


def foreign_footer(view: View) -> View:
    """The image with another disk's footer at its end: valid, but with another uuid."""
    footer = bytearray(view.pread(0, SECTOR))
    footer[68:84] = bytes(byte ^ 0x5A for byte in footer[68:84])
    footer[64:68] = bytes(4)
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    return OverlayView(view, [(view.size() - SECTOR, bytes(footer))])


def names_block(code: str | None, block: int) -> Callable[[Finding], bool]:
    return lambda finding: finding.block == block and code in (None, finding.code)


def _has(findings: tuple[Finding, ...], prefix: str) -> bool:
    return any(finding.code.startswith(prefix) for finding in findings)


def bat_of(meta: Any) -> dict[str, int]:
    bat: dict[str, int] = meta["bat"]
    return bat


def damaged_blocks(judged: Judged) -> set[int]:
    return {
        finding.block
        for outcome in judged.each().values()
        for finding in outcome.worst("corrupt")
        if finding.block is not None
    }
