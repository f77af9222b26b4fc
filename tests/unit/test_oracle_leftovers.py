"""The leftovers oracle: whatever a host still holds is found, told by name, and never green."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.oracle.evidence.holdings import KINDS
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.judge import judge_leftovers, prepare
from vhdtool.oracle.planted.leftover_faults import PLANTED
from vhdtool.oracle.run import exit_code, judge_run

Change = Callable[[dict[str, Any]], object]


def change(folder: Path, piece: str, how: Change) -> None:
    path = folder / "held" / f"{piece}.json"
    held = json.loads(path.read_text())
    how(held)
    path.write_text(json.dumps(held))


def findings(folder: Path) -> list[tuple[str, str]]:
    """(code, message) of each finding, from the oracle alone."""
    outcome = judge_leftovers(prepare(load_record(folder), None))
    return [(one.code, one.message) for one in outcome.findings]


@pytest.fixture(params=sorted({**oracle_cases.SAFE, "refused": oracle_cases.refused}))
def clean(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    makers = {**oracle_cases.SAFE, "refused": oracle_cases.refused}
    return makers[request.param]().save(tmp_path / "run" / "case")


@pytest.fixture
def back(tmp_path: Path) -> Path:
    """There and back, with the guard on: alpha is left by leg 1 and by leg 2 beta."""
    return oracle_cases.back().save(tmp_path / "run" / "case")


def test_a_case_that_leaves_nothing_behind_has_no_finding(clean: Path) -> None:
    assert findings(clean) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", ["alpha-after", "beta-after", "alpha-leg-1", "beta-leg-2"])
def test_each_kind_of_leftover_is_found_where_the_guest_has_left(
    back: Path, kind: str, piece: str
) -> None:
    host, _, point = piece.partition("-")
    thing = PLANTED[kind].format(host=host)
    change(back, piece, lambda held: held["held"][kind].append(thing))
    if kind == "keys" and point != "after":
        assert findings(back) == [], "the other host has the guest, and so the reservation"
        return
    ((code, message),) = findings(back)
    assert code == f"left-{kind}"
    assert message.startswith(f"{host} still has ")
    assert message.endswith(thing)


@pytest.mark.parametrize(("piece", "host"), [("alpha-leg-1", "alpha"), ("beta-leg-2", "beta")])
def test_a_vdi_key_of_the_host_that_the_guest_left_is_found(
    back: Path, piece: str, host: str
) -> None:
    key = "{0}: host_{0} (RW) of {0} (pid 11), key 1"
    other = {"alpha": "beta", "beta": "alpha"}[host]
    change(back, piece, lambda held: held["held"]["keys"].append(key.format(other)))
    assert findings(back) == [], "the host that runs the guest has the image active"
    change(back, piece, lambda held: held["held"]["keys"].append(key.format(host)))
    ((code, message),) = findings(back)
    assert (code, message.startswith(f"{host} still has a key")) == ("left-keys", True)


def test_leftovers_are_never_green_and_exit_with_1(back: Path) -> None:
    """It is proved, so a bisection must not skip it; the disk is whole, so it is not corrupt."""
    lock = "pid 11: write lock (OFDLCK) on bytes 300 to 301 of image.vhd"
    change(back, "alpha-leg-1", lambda held: held["held"]["locks"].append(lock))
    verdict = judge_run(back.parent)
    (entry,) = verdict["strategies"]
    assert entry["verdict"] == "inconclusive"
    assert entry["oracles"]["leftovers"]["result"] == "fail"
    assert entry["why"] == (
        "No data is lost, but a host still holds something: "
        f"alpha still has a lock after leg 1: {lock}"
    )
    assert exit_code(verdict) == 1


def test_a_leftover_beside_other_doubts_is_told_after_them(back: Path) -> None:
    change(back, "beta-after", lambda held: held["held"]["files"].append("image.vhd.part"))
    (back / "console.jsonl").unlink()
    verdict = judge_run(back.parent)
    (entry,) = verdict["strategies"]
    assert entry["why"].startswith("It proves nothing: ")
    assert "; beta still has a file beside the image after the case" in entry["why"]
    assert exit_code(verdict) == 1


def test_the_running_host_may_hold_the_lease_and_a_lock(back: Path) -> None:
    for kind, thing in (
        ("lease", "beta: pid 22, epoch 3"), ("locks", "elsewhere: write lock on bytes 300 to 301"),
    ):  # fmt: skip
        change(back, "alpha-leg-1", lambda held, k=kind, t=thing: held["held"][k].append(t))
    assert findings(back) == []
    change(back, "alpha-after", lambda held: held["held"]["locks"].append("elsewhere: a lock"))
    assert [code for code, _ in findings(back)] == ["left-locks"]


def test_what_was_there_before_is_no_leftover(back: Path) -> None:
    for piece in ("alpha-before", "alpha-leg-1", "alpha-leg-2", "alpha-after"):
        change(back, piece, lambda held: held["held"]["processes"].append("pid 5: tgtd"))
    assert findings(back) == []


@pytest.mark.parametrize(
    ("piece", "how", "code"),
    [
        ("alpha-before", lambda held: held["held"]["locks"].append("a lock"), "held-before"),
        ("alpha-before", lambda held: held.update(epoch=1), "held-epoch"),
        ("beta-after", lambda held: held.update(epoch=held["epoch"] + 1), "held-epoch"),
        ("beta-leg-1", lambda held: held["held"].update(processes=[]), "held-blind"),
        ("beta-leg-1", lambda held: held["held"].update(sockets=[]), "held-blind"),
        ("beta-leg-1", lambda held: held.update(seq=1), "held-time"),
        ("beta-after", lambda held: held.update(seq=held["seq"] - 3), "held-time"),
        ("beta-before", lambda held: held.update(seq=9), "held-time"),
        ("beta-after", lambda held: held.update(image="/srv/other.vhd"), "held-image"),
        ("beta-after", lambda held: held.update(point="before"), "held-torn"),
        ("beta-after", lambda held: held.update(host="alpha"), "held-torn"),
        ("beta-after", lambda held: held.update(schema=2), "held-torn"),
        ("beta-after", lambda held: held["held"].pop("dm"), "held-torn"),
        ("beta-after", lambda held: held["held"].update(dm=[1]), "held-torn"),
    ],
)
def test_a_look_that_the_record_contradicts_is_a_doubt(
    back: Path, piece: str, how: Change, code: str
) -> None:
    change(back, piece, how)
    assert code in {found for found, _ in findings(back)}


def test_guarded_hosts_must_show_the_lock_and_the_lease(tmp_path: Path) -> None:
    folder = oracle_cases.refused().save(tmp_path / "case")
    for kind in ("locks", "lease"):
        change(folder, "alpha-leg-1", lambda held, kind=kind: held["held"].update({kind: []}))
    assert [code for code, _ in findings(folder)] == ["held-blind"] * 2


def test_every_look_is_needed_and_a_stranger_is_none(back: Path) -> None:
    pieces = sorted((back / "held").iterdir())
    assert len(pieces) == 8
    for piece in pieces:
        data = piece.read_bytes()
        piece.unlink()
        assert ("held-missing", f"held/{piece.name}: missing") in findings(back)
        piece.write_bytes(data)
    moved = json.loads(pieces[0].read_text())
    (back / "held" / "gamma-after.json").write_text(
        json.dumps({**moved, "host": "gamma", "point": "after"})
    )
    assert [code for code, _ in findings(back)] == ["held-host"]


def test_a_record_from_before_the_looks_is_judged_as_it_was(tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    lab.schema = 1
    folder = lab.save(tmp_path / "run" / "case")
    (entry,) = judge_run(folder)["strategies"]
    assert entry["verdict"] == "consistent"
    assert entry["oracles"]["leftovers"]["result"] == "skip"
    assert "schema 1" in entry["oracles"]["leftovers"]["findings"][0]["message"]


def test_a_record_must_have_its_leftover_snapshots(tmp_path: Path) -> None:
    folder = oracle_cases.activate().save(tmp_path / "case")
    case = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**case, "schema": 1}))
    assert [code for code, _ in findings(folder)] == ["held-schema"]
    (folder / "case.json").write_text(json.dumps(case))
    for piece in (folder / "held").iterdir():
        piece.unlink()
    assert {code for code, _ in findings(folder)} == {"held-missing"}


def test_a_look_after_a_leg_that_never_was_is_a_doubt(back: Path) -> None:
    look = json.loads((back / "held" / "alpha-leg-1.json").read_text())
    (back / "held" / "alpha-leg-9.json").write_text(json.dumps({**look, "point": "leg-9"}))
    assert ("held-leg", "held/alpha-leg-9.json: the events have no such leg") in findings(back)
