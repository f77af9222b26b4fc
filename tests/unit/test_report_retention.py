"""Which old runs are removed: only runs, only by the stated rule, and wholly or not at all."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.run_history import make_run, make_runs, name_of
from vhdtool.cli.main import cli
from vhdtool.errors import UsageError
from vhdtool.report.history.retention import remove_old_runs
from vhdtool.report.lifecycle import begin

ORDERS = (("activate", True, "consistent", 4.0),)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Six runs of which the third was not as expected."""
    folder = tmp_path / "runs"
    for number in range(6):
        make_run(folder, number, odd=lambda n, *_: "corrupt" if n == 2 else None, orders=ORDERS)
    (folder / "latest").symlink_to(name_of(5))
    return folder


def left(folder: Path) -> list[int]:
    names = os.listdir(folder)
    return [number for number in range(20) if name_of(number) in names]


def test_old_runs_that_were_as_expected_are_removed(runs: Path) -> None:
    done = remove_old_runs(runs / "latest", 2)
    assert left(runs) == [2, 4, 5]
    assert done.removed == (name_of(0), name_of(1), name_of(3))
    expected = f"removed 3 old runs; kept 1 old run not as expected (first {name_of(2)})"
    assert done.sentence == expected
    assert remove_old_runs(runs / name_of(5), 1).removed == (name_of(4),)


def test_fewer_runs_than_the_limit_all_stay(runs: Path) -> None:
    done = remove_old_runs(runs / name_of(5), 6)
    assert left(runs) == [0, 1, 2, 3, 4, 5]
    assert done.sentence == ""


def test_the_current_run_stays_when_it_is_not_the_newest(runs: Path) -> None:
    remove_old_runs(runs / name_of(0), 2)
    assert left(runs) == [0, 2, 5]


def test_what_is_no_run_of_the_lab_is_never_removed(runs: Path, tmp_path: Path) -> None:
    old = {n: runs / f"2025010{n}T000000.000Z" for n in range(1, 7)}
    outside = make_run(tmp_path / "elsewhere", 0, orders=ORDERS)
    old[1].symlink_to(outside)  # a link
    old[2].mkdir()  # without a verdict
    (old[2] / "thesis.txt").write_text("x")
    shutil.copytree(runs / name_of(0), old[3])  # the verdict of another run
    old[4].mkdir()
    (old[4] / "verdict.json").write_text('{"schema": 1')  # damaged
    begin(old[5], ["activate-on-s1"])  # still under way
    old[6].write_text("a file")
    shutil.copytree(runs / name_of(0), runs / "mine")  # named by its owner
    (runs / name_of(1) / "keep").touch()
    (runs / "latest").unlink()
    (runs / "latest").symlink_to(name_of(3))
    before = set(os.listdir(runs))
    done = remove_old_runs(runs / name_of(5), 1)
    assert before - set(os.listdir(runs)) == {name_of(0), name_of(4)}
    assert done.unexpected == (old[5].name, name_of(2))
    assert (outside / "verdict.json").exists()


def test_the_newest_good_run_stays_when_all_later_ones_are_bad(tmp_path: Path) -> None:
    for number in range(6):
        make_run(tmp_path, number, odd=lambda n, *_: "corrupt" if n > 2 else None, orders=ORDERS)
    assert remove_old_runs(tmp_path / name_of(5), 2).removed == (name_of(0), name_of(1))
    assert left(tmp_path) == [2, 3, 4, 5]


def test_links_inside_a_run_are_not_followed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("x")
    (runs / name_of(0) / "link").symlink_to(tmp_path / "data")
    remove_old_runs(runs / name_of(5), 1)
    assert not (runs / name_of(0)).exists()
    assert (tmp_path / "data" / "file").exists()


def test_an_interrupted_removal_is_completed_later(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove_old_runs(runs / name_of(5), 5)
    assert left(runs) == [1, 2, 3, 4, 5], "a half of a run does not look like a run"
    assert f".removed-{name_of(0)}" in os.listdir(runs)
    remove_old_runs(runs / name_of(5), 5)
    assert sorted(os.listdir(runs)) == [*(name_of(n) for n in range(1, 6)), "latest"]


def test_a_run_that_cannot_be_removed_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    result = CliRunner().invoke(cli, ["lab", "prune", str(runs / "latest"), "--keep", "5"])
    assert result.exit_code == 1
    assert result.output == f"{name_of(0)} cannot be removed (Permission denied)\n"


def test_wrong_use_removes_nothing(runs: Path) -> None:
    for current, keep, words in (
        (runs / name_of(5), 0, "not even the current run"),
        (runs / name_of(5), -3, "not even the current run"),
        (runs, 3, "has no verdict.json"),
        (runs / "nowhere", 3, "has no verdict.json"),
    ):
        with pytest.raises(UsageError, match=words):
            remove_old_runs(current, keep)
    assert left(runs) == [0, 1, 2, 3, 4, 5]


def test_a_run_outside_of_others_is_left_alone(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, 1)
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["run"] == run.name
    assert remove_old_runs(run, 1).removed == ()
    assert run.exists()
