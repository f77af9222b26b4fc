"""The acknowledged-write oracle: what was acknowledged is there, and nothing else is.

For each sector of the disk the load says what may be in it:
- the last acknowledged write that covers it, or any later one that was issued and never
  acknowledged (it may be there, in part or not at all);
- zeros where no write was acknowledged.
Everything else is damage. Findings stay true when the console lost acknowledgements: then less
is demanded of the image, never more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhdtool.errors import VhdtoolError
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import Console
from vhdtool.oracle.evidence.load import Load
from vhdtool.oracle.evidence.schedule import SECTOR, identify
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.readers.image_view import View, kind_of
from vhdtool.oracle.readers.qcow2_disk import Qcow2Reader
from vhdtool.oracle.readers.vhd import DynamicReader, RawReader, open_reader

ENOUGH = 100_000
"""Wrong sectors after which the oracle stops looking: the image is destroyed."""
_ZERO = bytes(SECTOR)
AnyReader = RawReader | DynamicReader | Qcow2Reader


@dataclass(frozen=True)
class ContentOutcome(Outcome):
    """With the counts of verdict.json: writes lost, sectors that hold what was never written."""

    lost_writes: frozenset[int] = frozenset()
    never_written: int = 0
    damaged: frozenset[int] = field(default=frozenset())
    """All sectors that any finding names."""


@dataclass(frozen=True, slots=True)
class _Wrong:
    sector: int
    code: str
    write: int | None
    holds: str


def judge_content(case: Case, console: Console, view: View | None) -> ContentOutcome:
    """Compares the closed image with the load, and hears the guest's own read-back."""
    doubts = [doubt("console", problem) for problem in console.problems]
    if console.seed != case.seed:
        if console.started:
            text = f"the guest's load has seed {console.seed}, the case {case.seed}"
            doubts.append(doubt("seed", text))
        return ContentOutcome(tuple(doubts))
    load = Load.of(case, console)
    doubts += _read_back_doubts(load, console)
    findings = list(_read_back(load, console))
    if view is None:
        return ContentOutcome((*findings, *doubts))
    try:
        reader = disk_in(view, kind_of(case.image))
        mismatch = _wrong_disk(case, reader)
        if mismatch:
            return ContentOutcome((*findings, *doubts, mismatch))
        wrong = compare(load, reader)
    except (VhdtoolError, OSError) as error:
        return ContentOutcome((*findings, *doubts, doubt("unreadable", str(error))))
    if len(wrong) > ENOUGH:
        doubts.append(doubt("enough", f"stopped looking after {ENOUGH} damaged sectors"))
    return ContentOutcome(
        (*_grouped(load, wrong), *findings, *doubts),
        frozenset(item.write for item in wrong if item.write is not None),
        sum(item.code == "never-written" for item in wrong),
        frozenset(item.sector for item in wrong) | {sector for _, sector in console.bad},
    )


def disk_in(view: View, kind: str) -> AnyReader:
    """A reader of an image of that kind. Raises what opening it raises."""
    if kind == "qcow2":
        return Qcow2Reader(view)
    return open_reader(view) if kind == "vhd" else RawReader(view)


def _wrong_disk(case: Case, reader: AnyReader) -> Finding | None:
    sectors = case.image_bytes // SECTOR
    if reader.disk_sectors != sectors:
        text = f"the image's disk has {reader.disk_sectors} sectors, the case's load {sectors}"
        return doubt("size", text)
    if isinstance(reader, DynamicReader) and reader.block_sectors * SECTOR != case.block_bytes:
        text = f"the image has blocks of {reader.block_sectors} sectors, the case says otherwise"
        return doubt("size", text)
    return None


def _read_back(load: Load, console: Console) -> Iterator[Finding]:
    """What the guest itself read wrong, through the shim of its last host."""
    for n, sector in console.bad:
        text = f"the guest read sector {sector} back and it was not {load.named(n)}"
        yield Finding("readback-bad", text, block=load.block(sector), sectors=(sector, 1))
    if console.bad_total:
        text = f"the guest read {console.bad_total} of {console.checked} sectors back wrong"
        yield Finding("readback-bad", text)
    for check in console.checks:
        if check.bad:
            text = f"the guest read {check.bad} of {check.checked} extents that it wrote once "
            yield Finding("readback-bad", text + f"back wrong on {check.host}")


def _read_back_doubts(load: Load, console: Console) -> Iterator[Finding]:
    if console.errors:
        n, number = console.errors[0]
        text = f"the guest saw {len(console.errors)} I/O errors, first write {n} (errno {number})"
        yield doubt("io-error", text)
    if console.checked is not None and not console.errors and console.checked != len(load.last):
        text = f"the guest read back {console.checked} sectors of {len(load.last)} acknowledged"
        yield doubt("readback-short", text)


def compare(load: Load, reader: AnyReader) -> list[_Wrong]:
    """Every sector that differs from what the load allows, rising; a few more than ENOUGH."""
    missing = dict(load.last)
    wrong: list[_Wrong] = []
    for first, data in reader.chunks():
        for offset in range(0, len(data), SECTOR):
            found = data[offset : offset + SECTOR]
            if found == _ZERO:
                continue
            sector = first + offset // SECTOR
            n = missing.pop(sector, None)
            if n is not None and found == load.schedule.sector_content(n, sector):
                continue
            item = _judge(load, sector, n, found)
            if item:
                wrong.append(item)
        if len(wrong) > ENOUGH:
            return wrong
    wrong += [_Wrong(sector, "lost", n, "zeros") for sector, n in missing.items()]
    wrong += _hidden(load, reader)
    return sorted(wrong, key=lambda item: item.sector)


def _hidden(load: Load, reader: AnyReader) -> Iterator[_Wrong]:
    """Strange data under clear bits. The load's own may lie there: such a write was cut short."""
    for first, data in reader.hidden() if isinstance(reader, DynamicReader) else ():
        for offset in range(0, len(data), SECTOR):
            found, sector = data[offset : offset + SECTOR], first + offset // SECTOR
            if found == _ZERO:
                continue
            seed, n, at = identify(found) or (None, 0, None)
            own = seed == load.schedule.seed and at == sector
            if not own or not (n in load.acked or load.may_be_unacknowledged(n, sector)):
                yield _Wrong(sector, "hidden", None, "data that the load did not put there")


def _judge(load: Load, sector: int, n: int | None, found: bytes) -> _Wrong | None:
    """A sector that holds something else than its last acknowledged write `n`."""
    code = "never-written" if n is None else "lost"
    claim = identify(found)
    if claim is None:
        return _Wrong(sector, code, n, "data that the load never made")
    seed, m, at = claim
    if seed != load.schedule.seed:
        return _Wrong(sector, code, n, f"data of another run (seed {seed})")
    if at != sector:
        return _Wrong(sector, code, n, f"data of other sectors (shifted by {at - sector})")
    if load.may_be_instead(m, sector):
        return None
    if (n is None or m > n) and load.may_be_unacknowledged(m, sector):
        return None
    if n is None and load.deep is not None and sector in load.deep.freed:
        return _Wrong(sector, code, n, f"{load.named(m)}, zeroed afterwards")
    if n is not None and m < n:
        return _Wrong(sector, code, n, f"the older {load.named(m)}")
    return _Wrong(sector, code, n, f"{load.named(m)}, which was never issued here")


def _grouped(load: Load, wrong: list[_Wrong]) -> Iterator[Finding]:
    """One finding for each run of neighbours in one block with one story."""
    start = 0
    for end in range(1, len(wrong) + 1):
        head = wrong[start]
        if end < len(wrong):
            item = wrong[end]
            same = (item.code, item.write, item.holds) == (head.code, head.write, head.holds)
            near = item.sector - head.sector == end - start
            if same and near and load.block(item.sector) == load.block(head.sector):
                continue
        yield _finding(load, head, end - start)
        start = end


def _finding(load: Load, head: _Wrong, count: int) -> Finding:
    block = load.block(head.sector)
    place = f"block {block}, guest sectors {head.sector} to {head.sector + count - 1}"
    if head.code == "lost":
        write = load.named(head.write)
        text = f"{write} was acknowledged and is lost: {place} hold {head.holds}"
    elif head.code == "hidden":
        # The disk reads as zeros there, so it is no damage; but something wrote past the load.
        text = f"{place} are not present, yet the file holds {head.holds}"
        return Finding("hidden-data", text, "doubt", block, (head.sector, count))
    else:
        text = f"{place} hold {head.holds}, where nothing was written"
    return Finding(head.code, text, block=block, sectors=(head.sector, count))
