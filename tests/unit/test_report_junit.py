"""junit.xml is well formed, complete, and tells the three outcomes apart."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.support.synthetic_run import entry, make
from vhdtool.report.output.files import write_files
from vhdtool.report.run import load_run


def _suite(run_dir: Path) -> ET.Element:
    xml, _ = write_files(load_run(run_dir))
    suite = ET.parse(xml).getroot().find("testsuite")
    assert suite is not None
    return suite


def test_counts_and_outcomes(tmp_path: Path) -> None:
    suite = _suite(make(tmp_path / "run"))
    cases = suite.findall("testcase")
    assert len(cases) == 7 == int(suite.attrib["tests"])
    assert [case.attrib["name"] for case in cases if case.find("error") is not None] == [
        "reopen-on-s1",
        "hold-on-s1",
    ]
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "2")


def test_a_wrong_verdict_is_a_failure_with_its_findings(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    verdict = json.loads((run_dir / "verdict.json").read_text())
    verdict["strategies"][0]["expected"] = "consistent"
    (run_dir / "verdict.json").write_text(json.dumps(verdict))
    suite = _suite(run_dir)
    failure = suite.find("testcase/failure")
    assert suite.attrib["failures"] == "1"
    assert failure is not None
    assert failure.attrib["type"] == "corrupt"
    assert "expected consistent, got corrupt" in failure.attrib["message"]
    assert "lost-write" in str(failure.text)
    assert "make lab STRATEGY=overlap SEED=1 GUARD=off" in str(failure.text)


def test_elements_and_attributes_are_those_of_the_schema(tmp_path: Path) -> None:
    suite = _suite(make(tmp_path / "run"))
    tags = [child.tag for child in suite]
    assert tags == ["properties", *["testcase"] * 7, "system-out", "system-err"]
    wanted = {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors"}
    assert set(suite.attrib) == wanted | {"time"}
    for case in suite.findall("testcase"):
        assert set(case.attrib) == {"name", "classname", "time"}
        assert len(case) <= 1


def test_figures_are_properties(tmp_path: Path) -> None:
    suite = _suite(make(tmp_path / "run"))
    values = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert values["hypervisor"] == "kvm"
    assert values["overlap-off-s1.writes.lost"] == "243"
    assert values["activate-on-s1.blackout_ms.total"] == "48.0"
    assert "overlap-on-s1.margin_ms" not in values


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
