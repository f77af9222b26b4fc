"""Metadata only grows, and the closed image is the last snapshot."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.oracle.evidence.events import parse_events
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Outcome
from vhdtool.oracle.judge import Evidence, judge_metadata, prepare
from vhdtool.oracle.readers.image_view import FileView


@pytest.fixture
def evidence(tmp_path: Path) -> Any:
    record = load_record(oracle_cases.activate().save(tmp_path / "case"))
    assert record.image
    with FileView(record.image) as view:
        yield prepare(record, view)


def changed(evidence: Evidence, place: int, **meta: object) -> Outcome:
    """The oracle on the same record with one snapshot altered."""
    snapshots = list(evidence.record.snapshots)
    one = snapshots[place]
    snapshots[place] = Snapshot(one.leg, one.point, one.seq, {**one.meta, **meta})
    return judge_metadata(evidence.with_snapshots(tuple(snapshots)))


def meta_of(evidence: Evidence, place: int) -> dict[str, Any]:
    return copy.deepcopy(dict(evidence.record.snapshots[place].meta))


def test_a_clean_run_passes(evidence: Evidence) -> None:
    assert judge_metadata(evidence).result == "pass"
    assert [one.name for one in evidence.record.snapshots] == [
        "1-source-quiesced", "1-source-closed", "1-destination-opened", "1-destination-wrote",
        "1-all-closed",
    ]  # fmt: skip


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_vanished_and_a_moved_entry_name_block_and_points(evidence: Evidence, place: int) -> None:
    block = next(iter(meta_of(evidence, 0)["bat"]))
    meta = meta_of(evidence, place)
    del meta["bat"][block], meta["bitmaps"][block]
    [finding] = changed(evidence, place, **meta).of_severity("corrupt")
    assert (finding.code, finding.block) == ("bat-vanished", int(block))
    assert evidence.record.snapshots[place].name in finding.message
    meta = meta_of(evidence, place)
    meta["bat"][block] += 8
    found = changed(evidence, place, **meta).of_severity("corrupt")
    assert ("bat-moved", int(block)) in {(finding.code, finding.block) for finding in found}


def test_a_lost_bit_names_the_guests_sectors(evidence: Evidence) -> None:
    block = next(iter(meta_of(evidence, 0)["bat"]))
    meta = meta_of(evidence, 3)
    meta["bitmaps"][block] = "00" * (len(meta["bitmaps"][block]) // 2)
    found = changed(evidence, 3, **meta).of_severity("corrupt")
    assert {finding.code for finding in found} == {"bitmap-bit-lost"}
    assert all(finding.sectors for finding in found)


def test_the_closed_image_must_equal_the_last_snapshot(evidence: Evidence) -> None:
    meta = meta_of(evidence, -1)
    meta["file_size"] += 512
    assert changed(evidence, -1, **meta).of_severity("corrupt")[0].code == "image-file_size"
    meta = meta_of(evidence, -1)
    meta["footer"]["uuid"] = "0" * 36
    assert "image-footer" in {f.code for f in changed(evidence, -1, **meta).of_severity("corrupt")}


def test_snapshots_out_of_their_order_argue_nothing(tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    lab.metadata["1-all-closed"]["seq"] = 1
    record = load_record(lab.save(tmp_path / "case"))
    assert record.image
    with FileView(record.image) as view:
        outcome = judge_metadata(prepare(record, view))
    assert outcome.result == "skip"
    assert not outcome.of_severity("corrupt")


def test_events_that_end_before_a_snapshot_was_taken_are_torn(tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    del lab.events[-3:]
    record = load_record(lab.save(tmp_path / "case"))
    assert any("ends at seq" in problem for problem in record.snapshot_problems)


def test_an_allocation_is_where_its_event_says(
    evidence: Evidence,
) -> None:
    lab = oracle_cases.activate()
    event = next(event for event in lab.events if event["event"] == "allocated")
    event["sector"] += 8
    lines = "".join(json.dumps(one) + "\n" for one in lab.events)
    outcome = judge_metadata(evidence.with_events(parse_events(lines.encode(), None)))
    assert {finding.code for finding in outcome.findings} == {"block-place"}
    assert len(outcome.findings) == len(evidence.record.snapshots) + 1
    assert outcome.result == "skip"


@pytest.mark.parametrize(
    "change",
    [
        {"bat": {"3": "x"}}, {"bat": {"-1": 4}}, {"bat": []}, {"bitmaps": []},
        {"bitmaps": {"0": "zz"}},
        {"bitmaps": {"999": "00"}}, {"batmap": 5}, {"footer": 1}, {"seq": -1}, {"seq": 1.5},
        {"schema": 2}, {"point": "all-closed"}, {"file_size": None},
    ],
)  # fmt: skip
def test_a_snapshot_with_a_wrong_field_is_torn(change: dict[str, Any], tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    lab.metadata["1-source-closed"].update(change)
    record = load_record(lab.save(tmp_path / "case"))
    assert [one.point for one in record.snapshots].count("source-closed") == 0
    assert any("1-source-closed.json:" in problem for problem in record.snapshot_problems)


def test_the_closed_images_bitmaps_must_equal_the_last_snapshots(evidence: Evidence) -> None:
    meta = meta_of(evidence, -1)
    block, bits = next(iter(meta["bitmaps"].items()))
    meta["bitmaps"][block] = f"{int(bits, 16) | 1 << 900:0{len(bits)}x}"
    [finding] = [f for f in changed(evidence, -1, **meta).findings if f.code == "image-bitmaps"]
    assert finding.block == int(block)
