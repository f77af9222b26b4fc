"""Faults to plant in a copy of the image, each with the place that its finding must name.

Places are chosen where the record is undamaged, so that a fault is news in a corrupt record too.
Nothing is copied: image faults are a few bytes laid over the file's view.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vhdtool.oracle.content import Load, disk_in
from vhdtool.oracle.depth import DEEP
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.qcow2 import Qcow2Reader, entry_bytes
from vhdtool.oracle.reader import UNUSED, DynamicReader, open_reader
from vhdtool.oracle.schedule import SECTOR
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
    """A dropped acknowledgement before and after the switch, stale data, foreign data."""
    case, view = evidence.record.case, evidence.view
    if case is None or view is None or evidence.kind == "raw":
        return
    reader = disk_in(view, evidence.kind)
    if not isinstance(reader, DynamicReader | Qcow2Reader):
        return
    load = Load.of(case, evidence.console)

    def healthy(sector: int) -> int | None:
        """The byte in the file of an undamaged, acknowledged sector."""
        at = None if sector in judged.content.damaged else reader.locate(sector)
        if at is None or view.pread(at, SECTOR) != load.schedule.sector_content(
            load.last[sector], sector
        ):
            return None
        return at

    def over(*patches: tuple[int, bytes]) -> Evidence:
        return replace(evidence, view=OverlayView(view, patches))

    oldest_first = sorted(load.last, key=lambda sector: (load.last[sector], sector))
    for name, order in (("early", oldest_first), ("late", reversed(oldest_first))):
        for sector in order:
            if (at := healthy(sector)) is not None:
                changed = over((at, bytes(SECTOR)))
                yield Fault("content", f"dropped-ack-{name}", changed, _covers("lost", sector))
                break
    for sector, older in _rewritten(load):
        if (at := healthy(sector)) is not None:
            changed = over((at, load.schedule.sector_content(older, sector)))
            yield Fault("content", "stale-data", changed, _covers("lost", sector))
            break
    if isinstance(reader, Qcow2Reader):
        for sector, patch in _shown_twice(load, reader, healthy):
            yield Fault("content", "never-written", over(patch), _covers("never-written", sector))
            break
        return
    for sector, zeroed in _zeroed(load, reader, view):
        undone = over((zeroed, load.schedule.sector_content(DEEP, sector)))
        yield Fault("content", "zeroes-undone", undone, _covers("never-written", sector))
        break
    for sector in _unwritten(load, reader, view, judged):
        block, inside = divmod(sector, reader.block_sectors)
        at = reader.blocks[block] * SECTOR
        bits = reader.bitmap(block)[inside // 8] | 0x80 >> inside % 8
        foreign = load.schedule.sector_content(1 << 40, sector)
        changed = over(
            (at + inside // 8, bytes([bits])), (at + reader.bitmap_bytes + inside * SECTOR, foreign)
        )
        yield Fault("content", "never-written", changed, _covers("never-written", sector))
        break


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
    if len(sound) > 1:
        one, other = sound[0], sound[-1]
        changed = replace(evidence, view=entry(other, reader.blocks[one]))
        yield Fault("structure", "overlap", changed, lambda f: f.block in (one, other))
    if sound:
        cluster = sound[len(sound) // 2]
        far = (view.size() // reader.header.cluster + 8) * reader.header.cluster
        changed = replace(evidence, view=entry(cluster, far))
        yield Fault("structure", "entry-past-end", changed, names_block(None, cluster))
    told = evidence.record.checked
    if told is not None and not told.get("corruptions"):
        record = replace(evidence.record, checked={**told, "corruptions": 1})
        yield Fault(
            "structure", "qemu-img-says-so", replace(evidence, record=record),
            lambda f: f.code == "qemu-img-corruptions",
        )  # fmt: skip


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
    if len(sound) > 1:
        one, other = sound[0], sound[-1]
        view_with = entry(other, reader.blocks[one] + 1)
        changed = replace(evidence, view=view_with)
        yield Fault("structure", "overlap", changed, lambda f: f.block in (one, other))
    if sound:
        block = sound[len(sound) // 2]
        changed = replace(evidence, view=entry(block, view.size() // SECTOR + 8))
        yield Fault("structure", "entry-past-end", changed, names_block(None, block))
    if not _has(judged.structure.findings, "footer"):
        changed = replace(evidence, view=foreign_footer(view))
        yield Fault(
            "structure", "foreign-footer", changed, lambda f: f.code.startswith("footer")
        )  # fmt: skip


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
