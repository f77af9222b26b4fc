"""The verdict on whole records, and that no missing or torn piece turns into a better one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.oracle.coverage import MINIMUM, cover
from vhdtool.oracle.evidence.json_fields import LONGEST_TEXT
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.judge import prepare
from vhdtool.oracle.verdict import judge_case

ORACLES = ("content", "metadata", "structure", "activation")


def results(entry: dict[str, Any]) -> dict[str, str]:
    return {name: entry["oracles"][name]["result"] for name in ORACLES}


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("name", list(oracle_cases.SAFE))
def test_a_safe_order_is_consistent_and_every_oracle_was_tried(name: str, tmp_path: Path) -> None:
    entry: dict[str, Any] = judge_case(oracle_cases.SAFE[name]().save(tmp_path / name))
    assert entry["verdict"] == "consistent", entry["why"]
    assert set(results(entry).values()) == {"pass"}
    assert entry["planted"]["faults"] == entry["planted"]["caught"] >= 12
    assert entry["active_overlap_epochs"] == 0
    assert entry["margin_ms"] > 0
    assert entry["blackout_ms"]["total"] > 0
    assert min(entry["blocks_allocated"].values()) >= MINIMUM


@pytest.mark.parametrize("seed", range(5))
def test_an_overlap_is_corrupt_and_three_oracles_say_so(seed: int, tmp_path: Path) -> None:
    entry: dict[str, Any] = judge_case(oracle_cases.overlap(seed).save(tmp_path / "overlap"))
    assert entry["verdict"] == "corrupt"
    found = results(entry)
    assert (found["content"], found["metadata"], found["activation"]) == ("fail", "fail", "fail")
    assert entry["writes"]["lost"] > 0
    assert entry["active_overlap_epochs"] >= 1
    assert entry["margin_ms"] < 0
    assert entry["planted"]["faults"] == entry["planted"]["caught"] >= 10


def test_a_refusal_that_kept_the_guest_whole_is_refused(tmp_path: Path) -> None:
    entry: dict[str, Any] = judge_case(oracle_cases.refused().save(tmp_path / "refused"))
    assert entry["verdict"] == "refused", entry["why"]
    assert entry["margin_ms"] is None
    assert entry["writes"]["acked_after_resume"] >= MINIMUM


def test_a_refused_case_counts_blocks_up_to_the_refusal(
    tmp_path: Path,
) -> None:
    lab = oracle_cases.refused()
    place = lab.place("suspended")
    made = sum(event["event"] == "allocated" for event in lab.events[:place])
    lab.drop(place)
    entry = judge_case(lab.save(tmp_path / "refused"))
    assert entry["blocks_allocated"]["before_suspend"] == made > MINIMUM


def test_the_entry_has_the_keys_of_the_schema(tmp_path: Path) -> None:
    entry = judge_case(oracle_cases.activate().save(tmp_path / "activate"))
    assert list(entry) == [
        "name", "case", "guard", "seed", "direction", "attempts", "expected", "verdict", "why",
        "oracles", "planted", "writes", "blocks_allocated", "in_flight", "active_overlap_epochs",
        "margin_ms", "blackout_ms",
    ]  # fmt: skip
    json.dumps(entry, allow_nan=False)


PIECES = (
    "case.json", "events.jsonl", "console.jsonl", "console-alpha.log", "console-beta.log",
    "image.vhd", "metadata/1-source-quiesced.json", "metadata/1-source-closed.json",
    "metadata/1-destination-opened.json", "metadata/1-destination-wrote.json",
    "metadata/1-all-closed.json", "metadata",
)  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("how", ["missing", "torn", "empty"])
def test_without_a_file_a_clean_record_is_inconclusive(
    piece: str, how: str, tmp_path: Path
) -> None:
    for lab, without in ((oracle_cases.activate(), "inconclusive"), (oracle_cases.overlap(), "")):
        path = lab.save(tmp_path / lab.strategy)
        target = path / piece
        if target.is_dir():
            shutil.rmtree(target)
        elif how == "missing":
            target.unlink()
        else:
            data = target.read_bytes()
            target.write_bytes(data[: len(data) * 2 // 3] if how == "torn" else b"")
        entry: dict[str, Any] = judge_case(path)
        if piece == "image.vhd" and how != "missing":
            # An image that contradicts the snapshots is corrupt, whatever cut it.
            without = "corrupt"
        assert entry["verdict"] == (without or "corrupt"), entry["why"]


def test_the_reason_names_the_missing_piece(tmp_path: Path) -> None:
    path = oracle_cases.activate().save(tmp_path / "activate")
    (path / "metadata" / "1-destination-wrote.json").unlink()
    entry: dict[str, Any] = judge_case(path)
    assert "metadata/1-destination-wrote.json: missing" in entry["why"]
    assert results(entry)["metadata"] == "skip"


def test_an_event_that_is_gone_is_a_gap_and_not_an_argument(tmp_path: Path) -> None:
    path = oracle_cases.activate().save(tmp_path / "activate")
    lines = (path / "events.jsonl").read_text().splitlines(keepends=True)
    release = next(i for i, line in enumerate(lines) if '"deactivated"' in line)
    (path / "events.jsonl").write_text("".join(lines[:release] + lines[release + 1 :]))
    entry: dict[str, Any] = judge_case(path)
    assert entry["verdict"] == "inconclusive"
    assert entry["active_overlap_epochs"] == 0
    assert "seq" in entry["why"]


def test_an_overlap_is_proved_although_other_events_are_gone(tmp_path: Path) -> None:
    path = oracle_cases.overlap().save(tmp_path / "overlap")
    lines = (path / "events.jsonl").read_text().splitlines(keepends=True)
    (path / "events.jsonl").write_text("".join(lines[:4] + lines[6:]))
    entry: dict[str, Any] = judge_case(path)
    assert results(entry)["activation"] == "fail"


def test_lab_errors_and_a_kernel_oops_outweigh_damage(tmp_path: Path) -> None:
    path = oracle_cases.overlap().save(tmp_path / "error")
    error = {"what": "QEMU died\non beta", "log": ["signal 11"]}
    edit_json(path / "case.json", lambda case: case.update(error=error))
    entry: dict[str, Any] = judge_case(path)
    assert entry["verdict"] == "error"
    assert "QEMU died on beta" in entry["why"]
    assert "signal 11" in entry["why"]
    lab = oracle_cases.overlap()
    lab.say("beta", "[    9.1] BUG: unable to handle page fault")
    entry = judge_case(lab.save(tmp_path / "oops"))
    assert entry["verdict"] == "error"
    assert "BUG:" in entry["why"]


def test_proof_outweighs_a_failed_look_at_the_hosts(tmp_path: Path) -> None:
    error = {"what": "testinfra, live: not true that one host is active", "log": [], "look": True}
    for lab, verdict in ((oracle_cases.overlap(), "corrupt"), (oracle_cases.activate(), "error")):
        folder = lab.save(tmp_path / lab.strategy)
        edit_json(folder / "case.json", lambda case: case.update(error=error))
        entry: dict[str, Any] = judge_case(folder)
        assert entry["verdict"] == verdict
        assert "one host is active" in entry["why"]


def said(entry: dict[str, Any]) -> str:
    """All findings of an entry, and the reason."""
    findings = [f for name in ORACLES for f in entry["oracles"][name]["findings"]]
    return "\n".join([entry["why"], *(finding["message"] for finding in findings)])


def doubts(folder: Path) -> str:
    """What the run did not exercise."""
    return "\n".join(cover(prepare(load_record(folder), None)).doubts)


@pytest.mark.parametrize(
    ("writes", "reason"),
    [
        ({"first": 4, "during": 4}, "only 4 new blocks before the switch of leg 1"),
        ({"after": 8, "last": 2}, "only 5 new blocks after the switch of leg 1"),
        ({"after": 3, "last": 2}, "only 5 writes were acknowledged after the last switch"),
    ],
)
def test_too_little_on_either_side_proves_nothing(
    writes: dict[str, int], reason: str, tmp_path: Path
) -> None:
    entry: dict[str, Any] = judge_case(oracle_cases.activate(**writes).save(tmp_path / "case"))
    assert entry["verdict"] == "inconclusive"
    assert reason in entry["why"]


def test_a_cancelled_run_without_a_refusal_is_not_refused(tmp_path: Path) -> None:
    lab = oracle_cases.refused()
    lab.drop(lab.place("refused"))
    folder = lab.save(tmp_path / "cancelled")
    entry: dict[str, Any] = judge_case(folder)
    assert entry["verdict"] == "inconclusive"
    assert "beta refused nothing" in entry["why"]
    assert "without a refusal" in doubts(folder)


def test_a_destination_that_refused_and_wrote_is_not_refused(tmp_path: Path) -> None:
    lab = oracle_cases.refused()
    extra = next(e for e in lab.events if e["event"] == "closed")
    extra.update(event="allocated", epoch=2, block=1000, sector=9999)
    folder = lab.save(tmp_path / "wrote")
    entry: dict[str, Any] = judge_case(folder)
    assert entry["verdict"] == "inconclusive"
    assert "beta refused, but it served" in doubts(folder)
    extra.update(event="first-request", epoch=2)
    entry = judge_case(lab.save(tmp_path / "served"))
    assert entry["verdict"] == "corrupt", "a standby that serves makes two active hosts"


def test_a_guest_that_stops_after_the_cancel_is_not_refused(tmp_path: Path) -> None:
    lab = oracle_cases.refused()
    cancelled = next(e["seq"] for e in lab.events if e["event"] == "cancelled")
    for event in lab.events:
        if event["event"] == "allocated" and event["seq"] > cancelled:
            event["event"] = "attached"
    entry: dict[str, Any] = judge_case(lab.save(tmp_path / "still"))
    assert entry["verdict"] == "inconclusive"


@pytest.mark.parametrize("name", ["refused", "fenced"])
def test_a_long_reason_is_quoted_whole_on_one_line(name: str, tmp_path: Path) -> None:
    lab = oracle_cases.refused()
    if name == "fenced":
        lab.events[-1].update(event=name)
    stating = next(event for event in lab.events if event["event"] == name)
    stating["reason"] = f"is in use by {'x' * 600}\nend it there"
    assert f"is in use by {'x' * 600} end it there" in said(judge_case(lab.save(tmp_path / name)))


def test_a_lab_error_is_whole_and_a_huge_one_is_cut(tmp_path: Path) -> None:
    path = oracle_cases.activate().save(tmp_path / "error")
    long, huge = f"{'x' * 900} end", "y" * 100_000
    edit_json(path / "case.json", lambda case: case.update(error={"what": long, "log": [huge]}))
    why = judge_case(path)["why"]
    assert why == f"The lab failed: {long}; the log ends: {'y' * LONGEST_TEXT}..."


def test_a_fence_and_an_io_error_are_not_consistent(tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    last = lab.events[-1]
    last.update(event="fenced", reason="split brain", epoch=3)
    entry: dict[str, Any] = judge_case(lab.save(tmp_path / "fenced"))
    assert entry["verdict"] == "inconclusive"
    assert "split brain" in said(entry)
    lab = oracle_cases.activate()
    lab.logs["beta"] += b"error 3 5\r\n"
    entry = judge_case(lab.save(tmp_path / "io"))
    assert entry["verdict"] == "inconclusive"
    assert "I/O error" in said(entry)


def test_a_leg_that_never_ended_proves_nothing(tmp_path: Path) -> None:
    lab = oracle_cases.back()
    for event in lab.events:
        if event["event"] == "migrated" and event["leg"] == 2:
            event["event"] = "attached"
    folder = lab.save(tmp_path / "open")
    assert judge_case(folder)["verdict"] == "inconclusive"
    assert "neither migrated nor was cancelled" in doubts(folder)


@pytest.mark.parametrize(
    ("last_sector", "result"), [(b"\xc7" * 512, "fail"), (bytes(512), "fail"), (None, "pass")]
)
def test_a_closed_image_must_have_its_footer(
    last_sector: bytes | None, result: str, tmp_path: Path
) -> None:
    """Also when the last snapshot saw the same: then only the structure tells."""
    lab = oracle_cases.activate()
    size = lab.disk.size()
    if last_sector is not None:
        lab.disk.pwrite(size - 512, last_sector)
    else:
        # Leaked space is only information.
        footer = lab.disk.pread(size - 512, 512)
        lab.disk.zero(size - 512, 8192)
        lab.disk.pwrite(size + 8192 - 512, footer)
        lab.events[-2]["truncated_to"] = size + 8192
    lab.point("all-closed")
    entry: dict[str, Any] = judge_case(lab.save(tmp_path / "case"))
    assert results(entry)["structure"] == result
    assert results(entry)["metadata"] == "pass"
    assert entry["verdict"] == ("corrupt" if result == "fail" else "consistent")


@pytest.mark.parametrize(
    ("at", "verdict"), [("inside", "consistent"), ("late", "inconclusive"), (None, "inconclusive")]
)
def test_an_exclusive_login_without_a_rival_proves_nothing(
    at: str | None, verdict: str, tmp_path: Path
) -> None:
    lab = oracle_cases.activate()
    names = [event["event"] for event in lab.events]
    if at is not None:
        place = names.index("suspended") + (at == "late")
        tried = {**lab.events[place], "event": "kept-out", "host": "beta", "side": "destination"}
        lab.events.insert(place, {**tried, "reason": "another initiator has it reserved"})
        for seq, event in enumerate(lab.events, 1):
            event["seq"] = seq
        for taken in (*lab.metadata.values(), *lab.held.values()):
            taken["seq"] += taken["seq"] > place
    folder = lab.save(tmp_path / "login")
    without = "consistent" if at is None else "inconclusive"
    assert judge_case(folder)["verdict"] == without, "kept out by a storage that keeps nobody out"
    edit_json(folder / "case.json", lambda case: case.update(exclusive=True))
    entry = judge_case(folder)
    assert entry["verdict"] == verdict, entry["why"]
    assert (verdict == "consistent") != ("was not tested" in doubts(folder))


def test_a_first_snapshot_that_shows_no_image_proves_nothing(tmp_path: Path) -> None:
    folder = oracle_cases.activate().save(tmp_path / "case")
    edit_json(
        folder / "metadata" / "1-source-quiesced.json",
        lambda meta: meta.update(header=None, footer=None, bat={}, bitmaps={}, batmap=None),
    )
    entry = judge_case(folder)
    assert entry["verdict"] == "inconclusive"
    assert "1-source-quiesced.json has no header" in entry["why"]
