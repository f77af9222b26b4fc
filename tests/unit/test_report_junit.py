"""junit.xml is what CI systems read, complete, and tells error, failure and skip apart."""

import io
import json
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from rich.console import Console

from tests.support.synthetic_run import entry, make
from vhdtool.report.output.files import write_files
from vhdtool.report.output.junit import test_names as names_of
from vhdtool.report.output.table import print_tables
from vhdtool.report.run import load_run

SCHEMA = Path(__file__).resolve().parents[1] / "support" / "junit.xsd"


def _suite(run_dir: Path) -> ET.Element:
    """The suite of a run; what is written keeps to the schema."""
    xml, _ = write_files(load_run(run_dir))
    command = ["xmllint", "--noout", "--nonet", "--schema", str(SCHEMA), str(xml)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    suite = ET.parse(xml).getroot().find("testsuite")
    assert suite is not None
    return suite


def _change(run_dir: Path, **first: object) -> Path:
    """Change the first entry of verdict.json."""
    verdict = json.loads((run_dir / "verdict.json").read_text())
    verdict["strategies"][0] |= first
    (run_dir / "verdict.json").write_text(json.dumps(verdict))
    return run_dir


def _output(suite: ET.Element, name: str) -> list[str]:
    (text,) = (
        case.findtext("system-out")
        for case in suite.iter("testcase")
        if case.attrib["name"] == name
    )
    return str(text).splitlines()


def test_counts_and_outcomes(tmp_path: Path) -> None:
    suite = _suite(make(tmp_path / "run"))
    cases = suite.findall("testcase")
    assert len(cases) == 7 == int(suite.attrib["tests"])
    assert [case.attrib["name"] for case in cases if case.find("error") is not None] == [
        "reopen[guard=on]",
        "hold[guard=on]",
    ]
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "2")


def test_a_wrong_verdict_is_a_failure_with_its_findings(tmp_path: Path) -> None:
    suite = _suite(_change(make(tmp_path / "run"), expected="consistent"))
    failure = suite.find("testcase/failure")
    assert suite.attrib["failures"] == "1"
    assert failure is not None
    assert failure.attrib["type"] == "corrupt"
    assert "expected consistent, got corrupt" in failure.attrib["message"]
    assert "lost-write" in str(failure.text)
    assert "make lab STRATEGY=overlap SEED=1 GUARD=off" in str(failure.text)


def test_a_test_has_one_name_from_night_to_night(tmp_path: Path) -> None:
    for night, seed in (("one", 1), ("two", 47)):
        suite = _suite(_change(make(tmp_path / night), seed=seed))
        (first, *_) = suite.iter("testcase")
        assert first.attrib["name"] == "overlap[guard=off]"
        assert first.attrib["classname"] == "vhdtool.migration.overlap-off"
        values = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
        assert values["overlap[guard=off].seed"] == str(seed)
        assert values["overlap[guard=off].directory"] == "overlap-off-s1"
        assert values["hypervisor"] == "kvm"


def test_a_given_order_is_named_by_its_steps(tmp_path: Path) -> None:
    run = _change(make(tmp_path / "run"), name="custom")
    facts = json.loads((run / "overlap-off-s1" / "case.json").read_text())
    steps = "D.attach D.open | | S.deactivate S.detach"
    (run / "overlap-off-s1" / "case.json").write_text(json.dumps({**facts, "steps": [steps]}))
    assert f"order: {steps}" in _output(_suite(run), "overlap[guard=off]")
    assert steps in (run / "report.html").read_text()
    out = io.StringIO()
    print_tables(load_run(run), Console(file=out))
    assert f"custom: {steps}" in out.getvalue().splitlines()


def test_repeats_are_numbered_by_their_seeds() -> None:
    assert names_of(["hold-on-s10", "hold-on-s9", "custom-off-s1", "what is this"]) == {
        "hold-on-s9": "hold[guard=on,repeat=1]",
        "hold-on-s10": "hold[guard=on,repeat=2]",
        "custom-off-s1": "custom[guard=off]",
        "what is this": "what is this",
    }


def test_repeats_are_tests_of_their_own(tmp_path: Path) -> None:
    entries = [
        entry("hold", True, "consistent", "consistent", seed=n, case=f"hold-on-s{n}")
        for n in range(9, 12)
    ]
    (tmp_path / "verdict.json").write_text(json.dumps({"strategies": entries}))
    names = [case.attrib["name"] for case in _suite(tmp_path).iter("testcase")]
    # verdict.json does not say that the run is as expected.
    assert names == [*(f"hold[guard=on,repeat={n}]" for n in (1, 2, 3)), "run"]


def test_figures_are_the_output_of_a_test(tmp_path: Path) -> None:
    suite = _suite(make(tmp_path / "run"))
    lines = _output(suite, "overlap[guard=off]")
    assert lines[0].startswith("corrupt, expected corrupt: 243 acknowledged writes")
    assert {"writes.lost: 243", "margin_ms: -1060.0", "seed: 1"} < set(lines)
    assert "repeat it with: make lab STRATEGY=overlap SEED=1 GUARD=off" in lines
    assert not [line for line in _output(suite, "overlap[guard=on]") if "margin" in line]


def test_attachments_are_named_from_where_a_ci_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attached() -> Iterator[str]:
        for line in _output(_suite(run_dir), "overlap[guard=off]"):
            if line.startswith("[[ATTACHMENT|"):
                yield line.removeprefix("[[ATTACHMENT|").removesuffix("]]")

    run_dir = make(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    found = list(attached())
    assert found[0] == "runs/one/overlap-off-s1/reproduce.txt"
    assert all(Path(path).is_file() for path in found)
    assert not [path for path in found if "image" in path or "metadata" in path]
    monkeypatch.chdir("/")
    assert next(attached()).startswith(str(run_dir).lstrip("/"))
    monkeypatch.chdir(run_dir / "overlap-off-s1")
    assert next(attached()) == "overlap-off-s1/reproduce.txt"


def test_junitparser_reads_each_outcome(tmp_path: Path) -> None:
    run_dir = _change(make(tmp_path / "run"), expected="consistent")
    verdict = json.loads((run_dir / "verdict.json").read_text())
    cases = [case["case"] for case in verdict["strategies"]]
    verdict |= {"error": "it was interrupted", "asked": [*cases, "login-on-s1"]}
    (run_dir / "verdict.json").write_text(json.dumps(verdict))
    _suite(run_dir)
    (suite,) = JUnitXml.fromfile(str(run_dir / "junit.xml"))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (9, 1, 3, 1)
    kinds = {case.name: [type(one) for one in case.result] for case in suite}
    assert kinds["overlap[guard=off]"] == [Failure]
    assert kinds["hold[guard=on]"] == kinds["run"] == [Error]
    assert kinds["login[guard=on]"] == [Skipped]
    assert kinds["activate[guard=on]"] == []


def test_a_run_that_says_it_is_bad_is_never_green(tmp_path: Path) -> None:
    good = entry("activate", True, "consistent", "consistent")
    bad: list[dict[str, object]] = [
        {"strategies": [good], "as_expected": False},
        {"strategies": []},
    ]
    for verdict in bad:
        (tmp_path / "verdict.json").write_text(json.dumps(verdict))
        assert _suite(tmp_path).attrib["errors"] == "1"
    (tmp_path / "verdict.json").write_text(json.dumps({"strategies": [good], "as_expected": True}))
    assert _suite(tmp_path).attrib["errors"] == "0"


def test_characters_that_xml_cannot_hold_do_not_break_it(tmp_path: Path) -> None:
    bad = entry("overlap", False, "corrupt", "consistent", why="\x00\x1b[31m</x>&\ud800 ]]>")
    (tmp_path / "verdict.json").write_text(json.dumps({"strategies": [bad]}))
    failure = _suite(tmp_path).find("testcase/failure")
    assert failure is not None
    assert "</x>&" in failure.attrib["message"]


def test_leftovers_are_a_failure_and_no_lab_error(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    verdict = json.loads((run_dir / "verdict.json").read_text())
    found = {"code": "left-locks", "severity": "left", "message": "beta still has a lock"}
    verdict["strategies"][0]["verdict"] = "inconclusive"
    verdict["strategies"][0]["oracles"]["leftovers"] = {"result": "fail", "findings": [found]}
    (run_dir / "verdict.json").write_text(json.dumps(verdict))
    failure = _suite(run_dir).find("testcase/failure")
    assert failure is not None
    assert "leftovers: left-locks: beta still has a lock" in str(failure.text)
