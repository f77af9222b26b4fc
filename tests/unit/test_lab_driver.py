"""Whole cases on a hypervisor that is none of the lab's: the runner needs the protocol alone."""

import ast
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hypervisor import FakeDriver
from vhdtool.errors import UsageError
from vhdtool.lab.campaign import Lab
from vhdtool.lab.config import DRIVERS, LabConfig
from vhdtool.lab.hypervisors.driver import Driver, Hold, Outcome
from vhdtool.lab.live_checks import run as live_checks
from vhdtool.lab.options import OPTIONS, RunOptions
from vhdtool.lab.strategies import STRATEGIES
from vhdtool.oracle.verdict import judge_case

ROOT = Path(__file__).resolve().parent.parent.parent
SOUND = {"content", "metadata", "structure", "activation"}
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path, for sockets; `ssh` runs its command on this machine."""
    with tempfile.TemporaryDirectory(prefix="lab") as name:
        script = Path(name) / "bin" / "ssh"
        script.parent.mkdir()
        script.write_text('#!/bin/sh\nfor word; do :; done\nexec sh -c "$word"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        yield Path(name)


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs a lab with this driver; the verdict of each case by its name."""

    def run_lab(driver: Driver, **options: Any) -> dict[str, Any]:
        hosts = []
        for name in ("alpha", "beta"):
            host = folder / name
            host.mkdir()
            places = {"private_dir": str(host), "cache_dir": str(host), "lib": str(ROOT)}
            there = {"ssh": name, "address": "127.0.0.1", "python": sys.executable}
            hosts.append({"name": name, **there, **places})
        config = folder / "config.json"
        wanted = {"image_bytes": "256m", "block_bytes": "512k", "pace_us": 6000, **options}
        guest = {"kernel": "/none", "initrd": "/none"}
        paths = {"run_dir": str(folder / "run"), "shared_dir": str(folder)}
        config.write_text(json.dumps({"hosts": hosts, "guest": guest, **paths, **wanted}))
        lab = Lab(LabConfig.load(config), judge_case, print, driver)
        lab.run()
        return lab.verdicts

    return run_lab


def passed(verdict: dict[str, Any]) -> set[str]:
    """Oracles that found nothing. Both hosts are this machine, so `leftovers` sees the other's."""
    return {name for name, found in verdict["oracles"].items() if found["result"] == "pass"}


def events(folder: Path, case: str) -> list[str]:
    lines = (folder / "run" / case / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_a_safe_order_moves_the_guest(run: Run) -> None:
    driver = FakeDriver()
    verdicts = run(driver, strategies="activate")
    assert passed(verdicts["activate-on-s1"]) == SOUND
    steps = ["boot alpha", "kill alpha", "migrate from alpha", "resume beta", "kill alpha"]
    assert driver.calls == [*steps, "kill beta"]


def test_vdi_operations_move_the_guest_and_leave_no_key(run: Run, folder: Path) -> None:
    verdicts = run(FakeDriver(), strategies="xcp")
    assert passed(verdicts["xcp-on-s1"]) == SOUND
    expected = {"before": [], "leg-1": ["beta: host_beta"], "after": []}
    for host in ("alpha", "beta"):
        for point, keys in expected.items():
            path = folder / "run" / "xcp-on-s1" / "held" / f"{host}-{point}.json"
            held = json.loads(path.read_text())["held"]["keys"]
            assert [line.split(" (")[0] for line in held] == keys
    assert list(folder.glob("*.keys")) == []


def test_a_refused_order_is_cancelled_and_goes_on_at_the_source(run: Run, folder: Path) -> None:
    driver = FakeDriver()
    verdicts = run(driver, strategies="overlap", guard="on")
    assert passed(verdicts["overlap-on-s1"]) == SOUND
    assert driver.calls[2:] == ["migrate from alpha", "cancel alpha", "kill beta", "kill alpha"]
    assert "cancelled" in events(folder, "overlap-on-s1")


def test_a_killed_destination_is_followed_by_a_second_attempt(run: Run, folder: Path) -> None:
    driver = FakeDriver()
    verdicts = run(driver, strategies="activate-retry")
    assert passed(verdicts["activate-retry-on-s1"]) == SOUND
    first = ["migrate from alpha", "kill beta", "go on alpha"]
    assert driver.calls[2:8] == [*first, "migrate from alpha", "resume beta", "kill alpha"]
    found = [e for e in events(folder, "activate-retry-on-s1") if e in ("cancelled", "migrated")]
    assert found == ["cancelled", "migrated"]


def test_where_only_the_disk_is_held_a_paused_destination_waits(run: Run) -> None:
    verdicts = run(FakeDriver(Hold.DESTINATION_DISK), strategies="hold")
    # The guest may write while the snapshot after D.unpause is taken, so `metadata` may be skipped.
    assert passed(verdicts["hold-on-s1"]) >= SOUND - {"metadata"}


def test_where_only_the_disk_is_held_a_refusal_comes_before_suspended(
    run: Run, folder: Path
) -> None:
    driver = FakeDriver(Hold.DESTINATION_DISK)
    verdicts = run(driver, strategies="overlap", guard="on")
    assert "content" in passed(verdicts["overlap-on-s1"])
    assert driver.calls[2:] == ["migrate from alpha", "cancel alpha", "kill beta", "kill alpha"]
    found = events(folder, "overlap-on-s1")
    assert "suspended" not in found
    assert "cancelled" in found


def test_an_order_that_needs_the_switch_held_is_refused_at_once(run: Run, folder: Path) -> None:
    driver = FakeDriver(Hold.DESTINATION_DISK)
    with pytest.raises(UsageError, match="strategy activate: kvm resumes the guest by itself"):
        run(driver, strategies="activate")
    assert driver.calls == []
    assert not (folder / "run").exists()


def test_orders_that_pause_the_destination_are_known() -> None:
    held = [s.name for s in STRATEGIES.values() if all(leg.pauses_destination for leg in s.legs)]
    assert held == ["overlap", "hold"]


def test_a_failure_is_told_with_the_host_where_the_guest_runs(run: Run, folder: Path) -> None:
    run(FakeDriver(failing="resume"), strategies="activate")
    case = json.loads((folder / "run" / "activate-on-s1" / "case.json").read_text())
    expected = "the hypervisor exited with 1; the guest runs at the destination"
    assert case["error"]["what"] == expected
    assert case["attempts"] == 2


def test_live_checks_that_do_not_end_are_an_error_of_the_case(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_checks, "TIMEOUT", 0.01)
    run(FakeDriver(), strategies="activate", live_tests=True)
    case = json.loads((folder / "run" / "activate-on-s1" / "case.json").read_text())
    assert case["error"]["what"].startswith("testinfra, live: no end within 0.01 s; see ")
    assert case["attempts"] == 2


@pytest.mark.parametrize(
    ("source", "destination", "outcome"),
    [
        (True, False, Outcome.SOURCE),
        (False, True, Outcome.DESTINATION),
        (True, True, Outcome.BOTH),
        (False, False, Outcome.NOWHERE),
    ],
)
def test_the_outcome_is_what_both_sides_say(
    source: bool, destination: bool, outcome: Outcome
) -> None:
    assert Outcome.of(source, destination) is outcome


def test_every_value_of_the_option_has_a_driver() -> None:
    (option,) = [one for one in OPTIONS if one.field == "hypervisor"]
    for name in DRIVERS:
        assert option.read(name) == name
    assert RunOptions().hypervisor in DRIVERS
    with pytest.raises(ValueError, match=f"is none of {', '.join(DRIVERS)}$"):
        option.read("none")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_only_the_choice_of_the_driver_imports_one() -> None:
    lab = ROOT / "vhdtool" / "lab"
    importing = {
        path.relative_to(lab).as_posix()
        for path in lab.rglob("*.py")
        if any(
            name.startswith(("vhdtool.lab.hypervisors.q", "vhdtool.lab.hypervisors.x", "qemu"))
            for name in imports(path)
        )
    }
    # The machines are emulated by QEMU whatever hypervisor runs on them.
    outside = {name for name in importing if not name.startswith(("hypervisors/", "machines/"))}
    assert outside == {"config.py"}
