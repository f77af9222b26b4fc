"""Runs, exit codes, and the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.cli.main import run
from vhdtool.errors import UsageError
from vhdtool.oracle.run import exit_code, judge_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    oracle_cases.activate().save(path / "good" / "activate-on-s7")
    oracle_cases.overlap().save(path / "good" / "overlap-off-s7")
    lab = oracle_cases.overlap()
    lab.expected = "consistent"
    lab.save(path / "bad" / "overlap-off-s7")
    lab = oracle_cases.activate()
    lab.metadata.clear()
    lab.save(path / "torn" / "activate-on-s7")
    (path / "good" / "failed").mkdir()
    (path / "latest").symlink_to("good")
    (path / "empty").mkdir()
    return path


def test_a_run_is_the_sum_of_its_cases(folder: Path) -> None:
    verdict = judge_run(folder / "good")
    assert verdict["as_expected"] is True
    assert [verdict[key] for key in ("schema", "run", "hypervisor", "accelerator", "storage")] == [
        1, "good", "kvm", "tcg", "local",
    ]  # fmt: skip
    assert verdict["image"] == "vhd"
    entries = verdict["strategies"]
    assert isinstance(entries, list)
    assert [entry["verdict"] for entry in entries] == ["consistent", "corrupt"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("good", 0), ("latest", 0), ("good/activate-on-s7", 0), ("good/overlap-off-s7", 0),
        ("bad", 1), ("torn", 125), ("empty", 125), ("absent", 125),
        ("good/overlap-off-s7/case.json", 125),
    ],
)  # fmt: skip
def test_the_exit_code_of_judge(
    name: str, code: int, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["judge", str(folder / name)]) == code
    out, err = capfd.readouterr()
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in out + err


def test_usage_errors_skip_a_revision(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["judge"], ["judge", "a", "b"], ["judge", "--what", "a"]):
        assert run(arguments) == 125
        assert "Traceback" not in capfd.readouterr().err


def test_help_has_an_example(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "-h"]) == 0
    assert "vhdtool judge runs/latest" in capfd.readouterr().out


def test_json_of_a_run_and_of_a_case(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(["judge", str(folder / "latest"), "--json"])
    verdict = json.loads(capfd.readouterr().out)
    run(["judge", str(folder / "good" / "overlap-off-s7"), "--json"])
    entry = json.loads(capfd.readouterr().out)
    assert entry == verdict["strategies"][1]


def test_a_proved_surprise_weighs_more_than_a_doubt_elsewhere(folder: Path) -> None:
    entries = [
        {"verdict": "inconclusive", "expected": "consistent"},
        {"verdict": "corrupt", "expected": "consistent"},
    ]
    assert exit_code({"as_expected": False, "strategies": entries}) == 1
    assert exit_code({"as_expected": False, "strategies": entries[:1]}) == 125
    assert exit_code({"as_expected": False, "strategies": []}) == 125


def test_a_case_that_is_gone_is_missed(tmp_path: Path) -> None:
    oracle_cases.activate().save(tmp_path / "run" / "activate-on-s7")
    listed = {"strategies": [{"case": "activate-on-s7"}, {"case": "hold-on-s7"}]}
    (tmp_path / "run" / "verdict.json").write_text(json.dumps(listed))
    verdict = judge_run(tmp_path / "run")
    assert verdict["as_expected"] is False
    assert exit_code(verdict) == 125


def test_a_case_that_was_judged_already_is_not_judged_again(folder: Path) -> None:
    verdict = judge_run(folder / "good")
    entries = verdict["strategies"]
    assert isinstance(entries, list)
    known = {entry["case"]: entry for entry in entries}
    known["activate-on-s7"] = {**known["activate-on-s7"], "verdict": "error"}
    again = judge_run(folder / "good", known)
    assert again["as_expected"] is False


def test_no_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        judge_run(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("verdict.json", '{"strategies": [{"case": "hold-on-s7"}]}'),
        ("junit.xml", '<property name="hold[guard=on].directory" value="hold-on-s7" />'),
        ("junit.xml", '<property name="hold-on-s7.seed" value="7" />'),
    ],
)
def test_a_case_is_missed_by_either_list_of_cases(
    name: str, text: str, folder: Path, tmp_path: Path
) -> None:
    oracle_cases.activate().save(tmp_path / "run" / "activate-on-s7")
    (tmp_path / "run" / name).write_text(text)
    verdict = judge_run(tmp_path / "run")
    assert exit_code(verdict) == 125
    entries: Any = verdict["strategies"]
    assert [entry["case"] for entry in entries] == ["activate-on-s7", "hold-on-s7"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"strategies": 1, "strategies": []}'])
def test_a_list_of_cases_that_cannot_be_read_hides_none(text: str, tmp_path: Path) -> None:
    oracle_cases.activate().save(tmp_path / "run" / "activate-on-s7")
    (tmp_path / "run" / "verdict.json").write_text(text)
    assert exit_code(judge_run(tmp_path / "run")) == 125
