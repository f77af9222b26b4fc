"""Every end of a run leaves a verdict, a junit.xml and a report; none is green for nothing."""

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.cli import main as cli
from vhdtool.errors import LabError, UsageError
from vhdtool.oracle.run import exit_code, judge_run
from vhdtool.oracle.verdict import judge_case
from vhdtool.report.lifecycle import UNFINISHED, begin, end, end_unless_ended, ended_early
from vhdtool.report.output import files as build

ROOT = Path(__file__).resolve().parents[2]
CASE, TEST = "activate-on-s7", "activate[guard=on]"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun."""
    run = tmp_path / "runs" / "one"
    begin(run, [CASE])
    return run


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A case, and its verdict."""
    folder = oracle_cases.activate().save(tmp_path_factory.mktemp("record") / CASE)
    return folder, judge_case(folder)


def verdict(run: Path) -> dict[str, Any]:
    value = json.loads((run / "verdict.json").read_text())
    assert isinstance(value, dict)
    return value


def junit(run: Path) -> dict[str, str]:
    """{testcase that ran: message of its error}; "" for one that passed."""
    suite = ET.parse(run / "junit.xml").getroot()[0]
    errors = {}
    for case in suite.iter("testcase"):
        trouble = case.find("error")
        if case.find("skipped") is not None:
            continue
        errors[case.attrib["name"]] = "" if trouble is None else trouble.attrib["message"]
    assert int(suite.attrib["tests"]) - int(suite.attrib["skipped"]) == len(errors)
    assert int(suite.attrib["errors"]) == sum(bool(text) for text in errors.values())
    return errors


def test_a_run_that_has_begun_is_one_error_until_it_ends(run: Path) -> None:
    found = verdict(run)
    assert found["error"] == UNFINISHED
    assert found["asked"] == [CASE]
    assert found["as_expected"] is False
    assert exit_code(found) == 125
    assert junit(run) == {"run": UNFINISHED}
    assert UNFINISHED in (run / "report.html").read_text()
    assert os.readlink(run.parent / "latest") == "one"
    assert not list(run.parent.rglob(".*"))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_a_run_names_the_commit_that_made_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    made_with = json.loads((run / "software.json").read_text())
    assert made_with["commit"].removesuffix("-dirty") == head
    assert made_with["vhdtool"]
    # A hook, or a bisection of another repository, has set this.
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    begin(run, [CASE])
    assert json.loads((run / "software.json").read_text()) == made_with


def test_without_git_a_run_has_the_version_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    begin(tmp_path / "run", [CASE])
    made_with = json.loads((tmp_path / "run" / "software.json").read_text())
    assert made_with["commit"] is None


def test_a_run_that_ends_has_the_verdicts_of_its_cases(
    run: Path, record: tuple[Path, dict[str, Any]]
) -> None:
    folder, entry = record
    shutil.copytree(folder, run / CASE)
    with ended_early(run, {}):
        found = end(run, {CASE: entry})
    assert found == verdict(run)
    assert (found["error"], found["as_expected"]) == (None, True)
    assert junit(run) == {TEST: ""}
    end_unless_ended(run, "somebody else saw it fail")
    assert verdict(run)["error"] is None
    assert exit_code(judge_run(run)) == 0


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (LabError("alpha: no answer"), "alpha: no answer"),
        (KeyboardInterrupt(), "it was interrupted"),
        (SystemExit(143), "it was ended with exit code 143"),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device"),
        (ZeroDivisionError("a defect\nof ours"), "ZeroDivisionError: a defect of ours"),
    ],
)
def test_whatever_ends_a_run_early_is_its_one_error_and_goes_on(
    run: Path, record: tuple[Path, dict[str, Any]], failure: BaseException, words: str
) -> None:
    shutil.copytree(record[0], run / CASE)
    with pytest.raises(type(failure)), ended_early(run, {CASE: record[1]}):
        raise failure
    found = verdict(run)
    assert (found["error"], found["as_expected"]) == (words, False)
    assert junit(run) == {TEST: "", "run": words}
    again = judge_run(run)
    assert again["error"] == words, "a judge of later years knows it too"
    assert exit_code(again) == 125


def test_before_the_first_case_the_error_is_all_there_is(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["lab", "end", str(run), "--error", "alpha: unreachable:\n no route"]) == 0
    assert junit(run) == {"run": "alpha: unreachable: no route"}
    end_unless_ended(run, "a second reason")
    assert verdict(run)["error"] == "alpha: unreachable: no route"
    assert cli.run(["judge", str(run)]) == 125
    assert cli.run(["report", str(run)]) == 0
    out = capfd.readouterr().out
    assert out.count("did not finish: alpha: unreachable: no route") == 2


def test_a_case_that_was_asked_for_and_is_not_there_is_missed(
    run: Path, record: tuple[Path, dict[str, Any]]
) -> None:
    begin(run, [CASE, "hold-on-s7"])
    shutil.copytree(record[0], run / CASE)
    found: Any = end(run, {CASE: record[1]})
    assert found["as_expected"] is False
    assert [(e["case"], e["verdict"]) for e in found["strategies"]] == [
        (CASE, "consistent"), ("hold-on-s7", "inconclusive"),
    ]  # fmt: skip


def test_the_record_of_another_run_is_not_begun_again(
    run: Path, record: tuple[Path, dict[str, Any]]
) -> None:
    begin(run, [CASE])
    shutil.copytree(record[0], run / CASE)
    with pytest.raises(UsageError, match="another run"):
        begin(run, [CASE])
    shutil.rmtree(run / CASE)
    end_unless_ended(run, "over")
    with pytest.raises(UsageError, match="another run"):
        begin(run, [CASE])


def test_latest_names_the_last_run_that_could_begin(run: Path) -> None:
    (run.parent / "file").touch()
    with pytest.raises(UsageError, match="choose another directory"):
        begin(run.parent / "file", [CASE])
    assert os.readlink(run.parent / "latest") == "one"


def test_a_full_disk_keeps_the_first_files_of_a_record(
    run: Path, record: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three pieces finds no room: the first must not be the new one."""
    shutil.copytree(record[0], run / CASE)
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    monkeypatch.setattr(build, "write_beside", full_after(1, build.write_beside))
    with pytest.raises(UsageError, match="No space left"), ended_early(run, {}):
        end(run, {CASE: record[1]})
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def full_after(count: int, real: Callable[[Path, bytes], str]) -> Callable[[Path, bytes], str]:
    left = count

    def write(path: Path, content: bytes) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return real(path, content)

    return write


def test_the_playbooks_command_begins_a_run_by_its_options(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = '{"migration_strategies": "activate", "migration_seed": 3, "migration_repeats": 2}'
    assert cli.run(["lab", "begin", str(run), words]) == 0
    assert verdict(run)["asked"] == ["activate-on-s3", "activate-on-s4"]
    assert not (tmp_path / "latest").is_symlink()
    assert cli.run(["lab", "begin", str(tmp_path / "other"), '{"migration_seed": -1}']) == 125
    assert not (tmp_path / "other").exists()
