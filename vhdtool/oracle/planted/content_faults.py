"""Faults in the data of a copy of the image, each with the sector that its finding must name.

Sectors are chosen where the record is undamaged, so that the finding is new in a corrupt record
too. Nothing is copied: a fault is a few bytes that an OverlayView replaces.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from vhdtool.oracle.checks.content import open_disk
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.depth import DEEP
from vhdtool.oracle.evidence.load import Load
from vhdtool.oracle.evidence.schedule import SECTOR, Schedule
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.fault import Fault, Matches, at_sector
from vhdtool.oracle.readers.image_view import OverlayView, View
from vhdtool.oracle.readers.qcow2 import Qcow2Reader, entry_bytes
from vhdtool.oracle.readers.vhd import DynamicReader

_ZERO = bytes(SECTOR)


def content_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Data that is lost, old, of another sector or run, or that was never written.

    All faults are in one copy of the image, each in a sector of its own, because reading the whole
    image takes most of the time.
    """
    case, view = evidence.record.case, evidence.view
    if case is None or view is None or evidence.image_format == "raw":
        return
    reader = open_disk(view, evidence.image_format)
    if not isinstance(reader, DynamicReader | Qcow2Reader):
        return
    load = Load.of(case, evidence.console)
    patches: dict[int, bytes] = {}
    named: list[tuple[str, Matches]] = []

    def healthy(sector: int) -> int | None:
        """Offset in the file of an acknowledged, undamaged sector; None for any other sector."""
        at = None if sector in outcomes.content.damaged else reader.locate(sector)
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
                named.append((name, at_sector("lost", sector)))
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
    plant("of-another-sector", oldest, lambda at: content(load.last[at], at + 1))
    plant("of-no-write", oldest, lambda at: content(1 << 35, at))
    plant("foreign-data", oldest, lambda at: content(load.last[at], at)[:-1] + b"?")
    for name, code, sector, changes in _unwritten_faults(load, reader, view, outcomes, healthy):
        patches.update(changes)
        named.append((name, at_sector(code, sector)))
    changed = replace(
        evidence,
        view=OverlayView(view, list(patches.items())),
        console=replace(evidence.console, bad=[*evidence.console.bad, (0, 0)]),
        missing=(*evidence.missing, "planted: missing"),
    )
    named.append(("readback-counts", lambda f: f.code == "readback-bad" and f.sectors == (0, 1)))
    named.append(("missing-counts", lambda f: f.message == "planted: missing"))
    for name, matches in named:
        yield Fault("content", name, changed, matches)
    yield from _other_disk(evidence, case, isinstance(reader, DynamicReader))


def _other_disk(evidence: Evidence, case: Case, blocks: bool) -> Iterator[Fault]:
    """An image of another size than in case.json: not compared, but the console still counts."""
    console = replace(
        evidence.console,
        problems=[*evidence.console.problems, "planted: torn"],
        errors=[*evidence.console.errors, (0, 5)],
    )
    other = replace(case, image_bytes=case.image_bytes - SECTOR)
    changed = replace(evidence, record=replace(evidence.record, case=other), console=console)
    yield Fault("content", "disk-other", changed, lambda f: f.code == "size")
    yield Fault("content", "torn-counts", changed, lambda f: f.message == "planted: torn")
    yield Fault("content", "error-counts", changed, lambda f: f.code == "io-error")
    if blocks:
        other = replace(case, block_bytes=case.block_bytes * 2)
        changed = replace(evidence, record=replace(evidence.record, case=other))
        yield Fault("content", "blocks-other", changed, lambda f: f.code == "size")


def _unwritten_faults(
    load: Load,
    reader: DynamicReader | Qcow2Reader,
    view: View,
    outcomes: Outcomes,
    healthy: Callable[[int], int | None],
) -> Iterator[tuple[str, str, int, dict[int, bytes]]]:
    """(name, code, sector, patches) of data in sectors that were never written."""
    if isinstance(reader, Qcow2Reader):
        for sector, (at, data) in _shown_twice(load, reader, healthy):
            yield "never-written", "never-written", sector, {at: data}
            return
        return
    for sector, zeroed in _zeroed(load, reader, view):
        undone = {zeroed: load.schedule.sector_content(DEEP, sector)}
        yield "zeroes-undone", "never-written", sector, undone
        break
    free = list(_unwritten(load, reader, view, outcomes))
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


def _rewritten(load: Load) -> Iterator[tuple[int, int]]:
    """(sector, older acknowledged write) of sectors that were written more than once."""
    seen: dict[int, int] = {}
    for n, (first, count) in sorted(load.extents.items()):
        for sector in range(first, first + count):
            if sector in seen and load.last[sector] == n:
                yield sector, seen[sector]
            seen[sector] = n


def _zeroed(load: Load, reader: DynamicReader, view: View) -> Iterator[tuple[int, int]]:
    """(sector, offset in the file) of sectors whose last write was zeroes."""
    freed = load.deep.freed if load.deep is not None else {}
    for sector, before in freed.items():
        at = reader.locate(sector)
        if before < 0 and at is not None and view.pread(at, SECTOR) == _ZERO:
            yield sector, at


def _unwritten(load: Load, reader: DynamicReader, view: View, outcomes: Outcomes) -> Iterator[int]:
    """Sectors of allocated blocks that read as zeros and have no acknowledged write."""
    for block in reader.blocks:
        first = block * reader.block_sectors
        for sector in range(first, min(first + reader.block_sectors, reader.disk_sectors)):
            known = sector in load.last or sector in outcomes.content.damaged
            at = reader.locate(sector)
            if not known and (at is None or not view.pread(at, SECTOR).strip(b"\0")):
                yield sector
                break


def _shown_twice(
    load: Load, reader: Qcow2Reader, healthy: Callable[[int], int | None]
) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """(sector, patch): an L2 entry of an empty cluster points at a cluster that has data."""
    source = next((at for sector in load.last if (at := healthy(sector)) is not None), None)
    if source is None:
        return
    offset = source // reader.header.cluster * reader.header.cluster
    for cluster in range(reader.header.clusters):
        entry = reader.entry(cluster)
        first = cluster * reader.block_sectors
        sectors = range(first, first + reader.block_sectors)
        if entry is None or cluster in reader.blocks or load.last.keys() & set(sectors):
            continue
        yield first + (source - offset) // SECTOR, (entry, entry_bytes(offset))
