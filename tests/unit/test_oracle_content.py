"""The acknowledged-write oracle against images that were changed on purpose."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from tests.support.oracle_cases import BLOCK, Lab
from vhdtool.oracle.checks.content import ContentOutcome, check_content
from vhdtool.oracle.evidence.console import read_console
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.evidence.schedule import SECTOR, Schedule
from vhdtool.oracle.finding import SHOWN
from vhdtool.oracle.readers.image_view import FileView, OverlayView
from vhdtool.oracle.readers.vhd import DynamicReader, open_reader

Patch = tuple[int, bytes]


class Case:
    """A record loaded once; `judge` with other bytes in its image."""

    def __init__(self, path: Path) -> None:
        record = load_record(path)
        assert record.case
        assert record.image
        self.case = record.case
        self.console = read_console(record.console, record.console_problems)
        self.view = FileView(record.image)
        reader = open_reader(self.view)
        assert isinstance(reader, DynamicReader)
        self.reader = reader

    def judge(self, *patches: Patch) -> ContentOutcome:
        return check_content(self.case, self.console, OverlayView(self.view, patches))

    def at(self, sector: int) -> int:
        offset = self.reader.locate(sector)
        assert offset is not None
        return offset


@pytest.fixture(scope="module")
def lab() -> Lab:
    return oracle_cases.activate()


@pytest.fixture
def case(lab: Lab, tmp_path: Path) -> Any:
    one = Case(lab.save(tmp_path / "case"))
    yield one
    one.view.close()


def last_writes(lab: Lab) -> dict[int, int]:
    last: dict[int, int] = {}
    for n in lab.written:
        sector, length = lab.load.extent(n)
        last.update(dict.fromkeys(range(sector, sector + length), n))
    return last


def test_an_untouched_image_passes(case: Case) -> None:
    assert case.judge().result == "pass"


def test_a_zeroed_sector_is_a_lost_write(lab: Lab, case: Case) -> None:
    sector, n = list(last_writes(lab).items())[17]
    outcome = case.judge((case.at(sector), bytes(SECTOR)))
    assert outcome.lost_writes == {n}
    [finding] = outcome.findings
    assert (finding.code, finding.block, finding.sectors) == (
        "lost", sector // (BLOCK // SECTOR), (sector, 1),
    )  # fmt: skip
    assert "hold zeros" in finding.message


def test_one_flipped_bit_is_a_lost_write(lab: Lab, case: Case) -> None:
    sector, n = next(iter(last_writes(lab).items()))
    data = bytearray(lab.load.sector_content(n, sector))
    data[300] ^= 1
    assert case.judge((case.at(sector), bytes(data))).lost_writes == {n}


def test_the_data_of_an_overwritten_write_is_stale(lab: Lab, case: Case) -> None:
    seen: dict[int, int] = {}
    last = last_writes(lab)
    for n in lab.written:
        sector, _ = lab.load.extent(n)
        if sector in seen and last[sector] == n:
            break
        seen[sector] = n
    stale = lab.load.sector_content(seen[sector], sector)
    outcome = case.judge((case.at(sector), stale))
    assert outcome.lost_writes == {n}
    assert f"older write {seen[sector]}" in outcome.findings[0].message


def test_data_of_another_place_or_run_says_where_it_comes_from(lab: Lab, case: Case) -> None:
    sectors = list(last_writes(lab))
    moved = lab.load.sector_content(last_writes(lab)[sectors[0]], sectors[0])
    outcome = case.judge((case.at(sectors[-1]), moved))
    assert f"shifted by {sectors[0] - sectors[-1]}" in outcome.findings[0].message
    other = Schedule(99, lab.load.disk_sectors, lab.load.block_sectors)
    outcome = case.judge((case.at(sectors[-1]), other.sector_content(1, sectors[-1])))
    assert "another run (seed 99)" in outcome.findings[0].message


def unwritten(lab: Lab, case: Case) -> tuple[int, list[Patch]]:
    """A sector of an allocated block that was never written, and what makes it present."""
    last = last_writes(lab)
    block = next(iter(case.reader.blocks))
    per_block = BLOCK // SECTOR
    sector = next(s for s in range(block * per_block, (block + 1) * per_block) if s not in last)
    inside = sector % per_block
    at = case.reader.blocks[block] * SECTOR
    bits = case.reader.bitmap(block)[inside // 8] | 0x80 >> inside % 8
    data = at + case.reader.bitmap_bytes + inside * SECTOR
    return sector, [(at + inside // 8, bytes([bits])), (data, b"\1" * SECTOR)]


def test_data_where_nothing_was_written_is_never_written(lab: Lab, case: Case) -> None:
    sector, patches = unwritten(lab, case)
    outcome = case.judge(*patches)
    assert outcome.never_written == 1
    assert outcome.findings[0].sectors == (sector, 1)
    hidden = case.judge(patches[1])
    assert hidden.result == "skip", "a clear bit hides it from the guest, but who wrote it?"
    assert [finding.code for finding in hidden.findings] == ["hidden-data"]
    assert hidden.never_written == 0


def test_an_unacknowledged_write_may_be_there_in_part(lab: Lab, case: Case) -> None:
    newest = max(n for n in lab.written if n % 2 == 0)
    case.console.acks[:] = [ack for ack in case.console.acks if ack.n < newest]
    assert not case.judge().of_severity("corrupt"), "it is there"
    first, count = lab.load.extent(newest)
    gone = [(case.at(sector), bytes(SECTOR)) for sector in range(first, first + count)]
    assert not case.judge(*gone[:3]).of_severity("corrupt"), "it is there in part"
    assert not case.judge(*gone).of_severity("corrupt"), "it is not there"
    strange = case.judge((gone[0][0], b"\1" * SECTOR))
    assert strange.never_written == 1, "what is there must still be the write"


def test_a_write_that_was_never_issued_must_not_be_there(lab: Lab, case: Case) -> None:
    newest = max(n for n in lab.written if n % 2 == 0)
    case.console.acks[:] = [ack for ack in case.console.acks if ack.n < newest]
    case.console.issued = newest
    outcome = case.judge()
    assert outcome.of_severity("corrupt")
    assert "never issued" in outcome.of_severity("corrupt")[0].message


def test_a_cleared_bit_loses_the_write_despite_its_data(lab: Lab, case: Case) -> None:
    sector = next(iter(last_writes(lab)))
    block, inside = divmod(sector, BLOCK // SECTOR)
    at = case.reader.blocks[block] * SECTOR + inside // 8
    outcome = case.judge((at, b"\0"))
    assert outcome.lost_writes


def test_the_guests_own_read_back_counts(case: Case) -> None:
    case.console.bad.append((4, 77))
    case.console.bad_total = 1
    outcome = case.judge()
    assert [finding.code for finding in outcome.findings] == ["readback-bad", "readback-bad"]
    assert outcome.findings[0].sectors == (77, 1)
    case.console.bad.clear()
    case.console.bad_total, case.console.checked = 0, 3
    assert case.judge().result == "skip", "3 sectors are not all that was acknowledged"


def test_another_seed_argues_nothing(case: Case) -> None:
    case.console.seed = 1234
    outcome = case.judge()
    assert outcome.result == "skip"
    assert not outcome.of_severity("corrupt")


def test_a_destroyed_image_gives_a_short_report(lab: Lab, case: Case) -> None:
    table = case.reader.bat_offset
    outcome = case.judge((table, b"\xff" * 4 * len(lab.load.order)))
    assert len(outcome.lost_writes) > 50
    shown = outcome.as_dict()["findings"]
    assert isinstance(shown, list)
    assert len(shown) == SHOWN + 1
    assert "in all" in shown[-1]["message"]


def test_a_failed_write_never_replaces_a_later_one(lab: Lab, case: Case) -> None:
    last = last_writes(lab)
    seen: dict[int, int] = {}
    for n in lab.written:
        sector, _ = lab.load.extent(n)
        if sector in seen and last[sector] == n:
            break
        seen[sector] = n
    older = seen[sector]
    case.console.acks[:] = [ack for ack in case.console.acks if ack.n != older]
    outcome = case.judge((case.at(sector), lab.load.sector_content(older, sector)))
    assert n in outcome.lost_writes


def test_data_of_a_write_that_does_not_cover_it_is_foreign(lab: Lab, case: Case) -> None:
    sector, patches = unwritten(lab, case)
    case.console.issued = None
    claim = next(n for n in range(10_000, 20_000) if sector not in range(*_span(lab, n)))
    patches[1] = (patches[1][0], lab.load.sector_content(claim, sector))
    assert case.judge(*patches).never_written == 1


def _span(lab: Lab, n: int) -> tuple[int, int]:
    sector, length = lab.load.extent(n)
    return sector, sector + length
