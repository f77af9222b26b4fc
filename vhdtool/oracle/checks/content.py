"""The content oracle: the disk holds every acknowledged write, and nothing else.

For each sector the write load determines what it may hold:
- the last acknowledged write that covers it, or a later write that was issued and never
  acknowledged (all of it, a part, or nothing);
- zeros where no write was acknowledged.
Everything else is damage. A finding stays true if the console lost acknowledgements: then less is
required of the image, never more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhdtool.errors import VhdtoolError
from vhdtool.oracle.evidence.case import Case, image_format
from vhdtool.oracle.evidence.console import Console
from vhdtool.oracle.evidence.load import Load
from vhdtool.oracle.evidence.schedule import SECTOR, identify
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.readers.image_view import View
from vhdtool.oracle.readers.qcow2 import Qcow2Reader
from vhdtool.oracle.readers.vhd import DynamicReader, RawReader, open_reader

ENOUGH = 100_000
"""Wrong sectors after which the comparison stops."""
_ZERO = bytes(SECTOR)
AnyReader = RawReader | DynamicReader | Qcow2Reader


@dataclass(frozen=True)
class ContentOutcome(Outcome):
    """With the counts of verdict.json: lost writes, and sectors with data that was not written."""

    lost_writes: frozenset[int] = frozenset()
    never_written: int = 0
    damaged: frozenset[int] = field(default=frozenset())
    """All sectors that a finding names."""


@dataclass(frozen=True, slots=True)
class _WrongSector:
    sector: int
    code: str
    write: int | None
    holds: str


def check_content(case: Case, console: Console, view: View | None) -> ContentOutcome:
    """Compares the closed image with the write load, and reports the guest's own read-back."""
    doubts = [doubt("console", problem) for problem in console.problems]
    if console.seed != case.seed:
        if console.started:
            text = f"the guest's write load has seed {console.seed}, case.json has {case.seed}"
            doubts.append(doubt("seed", text))
        return ContentOutcome(tuple(doubts))
    load = Load.of(case, console)
    doubts += _read_back_doubts(load, console)
    findings = list(_read_back(load, console))
    if view is None:
        return ContentOutcome((*findings, *doubts))
    try:
        reader = open_disk(view, image_format(case.image))
        mismatch = _wrong_disk(case, reader)
        if mismatch:
            return ContentOutcome((*findings, *doubts, mismatch))
        wrong = compare(load, reader)
    except (VhdtoolError, OSError) as error:
        return ContentOutcome((*findings, *doubts, doubt("unreadable", str(error))))
    if len(wrong) > ENOUGH:
        doubts.append(doubt("enough", f"the comparison stopped after {ENOUGH} wrong sectors"))
    return ContentOutcome(
        (*_grouped(load, wrong), *findings, *doubts),
        frozenset(item.write for item in wrong if item.write is not None),
        sum(item.code == "never-written" for item in wrong),
        frozenset(item.sector for item in wrong) | {sector for _, sector in console.bad},
    )


def open_disk(view: View, kind: str) -> AnyReader:
    """Opens the disk in an image of format `kind`. Raises CorruptImage or NotAVhd."""
    if kind == "qcow2":
        return Qcow2Reader(view)
    return open_reader(view) if kind == "vhd" else RawReader(view)


def _wrong_disk(case: Case, reader: AnyReader) -> Finding | None:
    sectors = case.image_bytes // SECTOR
    if reader.disk_sectors != sectors:
        text = f"the image's disk has {reader.disk_sectors} sectors, case.json has {sectors}"
        return doubt("size", text)
    if isinstance(reader, DynamicReader) and reader.block_sectors * SECTOR != case.block_bytes:
        size = reader.block_sectors * SECTOR
        text = f"the image's blocks have {size} bytes, case.json has {case.block_bytes}"
        return doubt("size", text)
    return None


def _read_back(load: Load, console: Console) -> Iterator[Finding]:
    """Wrong data that the guest itself read, through the shim of its last host."""
    for n, sector in console.bad:
        text = f"the guest read back sector {sector}, which did not hold {load.describe(n)}"
        yield Finding("readback-bad", text, block=load.block(sector), sectors=(sector, 1))
    if console.bad_total:
        text = f"the guest read back {console.bad_total} of {console.checked} sectors wrong"
        yield Finding("readback-bad", text)
    for check in console.checks:
        if check.bad:
            text = f"the guest read back {check.bad} of {check.checked} extents wrong on "
            yield Finding("readback-bad", f"{text}{check.host}, which it had written once")


def _read_back_doubts(load: Load, console: Console) -> Iterator[Finding]:
    if console.errors:
        n, number = console.errors[0]
        text = (
            f"the guest had {len(console.errors)} I/O errors, first at write {n} (errno {number})"
        )
        yield doubt("io-error", text)
    if console.checked is not None and not console.errors and console.checked != len(load.last):
        text = f"the guest read back {console.checked} of {len(load.last)} acknowledged sectors"
        yield doubt("readback-short", text)


def compare(load: Load, reader: AnyReader) -> list[_WrongSector]:
    """Every sector that the load does not allow, rising; stops soon after ENOUGH."""
    missing = dict(load.last)
    wrong: list[_WrongSector] = []
    for first, data in reader.chunks():
        for offset in range(0, len(data), SECTOR):
            found = data[offset : offset + SECTOR]
            if found == _ZERO:
                continue
            sector = first + offset // SECTOR
            n = missing.pop(sector, None)
            if n is not None and found == load.schedule.sector_content(n, sector):
                continue
            item = _wrong_sector(load, sector, n, found)
            if item:
                wrong.append(item)
        if len(wrong) > ENOUGH:
            return wrong
    wrong += [_WrongSector(sector, "lost", n, "zeros") for sector, n in missing.items()]
    wrong += _hidden(load, reader)
    return sorted(wrong, key=lambda item: item.sector)


def _hidden(load: Load, reader: AnyReader) -> Iterator[_WrongSector]:
    """Foreign data under clear bitmap bits. Data of the load may be there: an interrupted write."""
    for first, data in reader.hidden() if isinstance(reader, DynamicReader) else ():
        for offset in range(0, len(data), SECTOR):
            found, sector = data[offset : offset + SECTOR], first + offset // SECTOR
            if found == _ZERO:
                continue
            seed, n, at = identify(found) or (None, 0, None)
            own = seed == load.schedule.seed and at == sector
            if not own or not (n in load.acked or load.may_be_unacknowledged(n, sector)):
                yield _WrongSector(sector, "hidden", None, "data that is not of the write load")


def _wrong_sector(load: Load, sector: int, n: int | None, found: bytes) -> _WrongSector | None:
    """Judges a sector that does not hold its last acknowledged write `n`; None: it is allowed."""
    code = "never-written" if n is None else "lost"
    claim = identify(found)
    if claim is None:
        return _WrongSector(sector, code, n, "data that is not of the write load")
    seed, m, at = claim
    if seed != load.schedule.seed:
        return _WrongSector(sector, code, n, f"data of another run (seed {seed})")
    if at != sector:
        return _WrongSector(sector, code, n, f"data of other sectors (shifted by {at - sector})")
    if load.may_be_instead(m, sector):
        return None
    if (n is None or m > n) and load.may_be_unacknowledged(m, sector):
        return None
    if n is None and load.deep is not None and sector in load.deep.freed:
        return _WrongSector(sector, code, n, f"{load.describe(m)}, which was zeroed afterwards")
    if n is not None and m < n:
        return _WrongSector(sector, code, n, f"the older {load.describe(m)}")
    return _WrongSector(sector, code, n, f"{load.describe(m)}, which was never issued here")


def _grouped(load: Load, wrong: list[_WrongSector]) -> Iterator[Finding]:
    """One finding for each run of consecutive sectors of a block that are wrong alike."""
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


def _finding(load: Load, head: _WrongSector, count: int) -> Finding:
    block = load.block(head.sector)
    where = f"block {block}, guest sectors {head.sector} to {head.sector + count - 1}"
    if head.code == "lost":
        write = load.describe(head.write)
        text = f"{write} was acknowledged and is lost: {where} hold {head.holds}"
    elif head.code == "hidden":
        # The disk reads as zeros there: no damage, but the load did not write these bytes.
        text = f"{where} are not present, but the file holds {head.holds}"
        return Finding("hidden-data", text, "doubt", block, (head.sector, count))
    else:
        text = f"{where} hold {head.holds}, where nothing was written"
    return Finding(head.code, text, block=block, sectors=(head.sector, count))
