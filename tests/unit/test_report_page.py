"""report.html holds every case and finding, nothing foreign, and survives any record."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.synthetic_run import entry, make
from vhdtool.cli.commands.report import report
from vhdtool.report.case import Finding
from vhdtool.report.output.files import write_files
from vhdtool.report.output.page import damage_text
from vhdtool.report.run import load_run

VOID = {"meta", "br", "rect", "line", "polygon"}


class Checker(HTMLParser):
    """Collects tags and attributes, and notices elements that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _page(run_dir: Path) -> str:
    return write_files(load_run(run_dir))[1].read_text()


def _checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    return checker


def test_every_case_finding_and_command_is_there(tmp_path: Path) -> None:
    html = _page(make(tmp_path / "run"))
    checker = _checked(html)
    ids = [str(attrs["id"]) for tag, attrs in checker.seen if tag == "section"]
    sections = [name for name in ids if name.startswith("case-")]
    assert len(sections) == len(set(sections)) == 7
    for word in (
        "lost-write",
        "bat-vanished",
        "12288–16383",
        "45 findings",
        "QEMU on beta ended with status -11",
        "make lab STRATEGY=activate SEED=1 GUARD=on",
        "Only 2 blocks were allocated after the switch",
        "events.jsonl: missing",
    ):
        assert word in html
    assert html.count('<svg viewBox="0 0 960') == 6 + 8  # overviews, legs


def test_the_report_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    html = _page(run_dir)
    checker = _checked(html)
    assert not {tag for tag, _ in checker.seen} & {"script", "img", "link", "iframe", "object"}
    assert not any("src" in attrs for _, attrs in checker.seen)
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    links = [str(attrs["href"]) for tag, attrs in checker.seen if tag == "a"]
    for link in links:
        assert link.startswith("#case-") or (run_dir / link).is_file()


def test_hostile_strings_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=y>"
    case = entry(evil, True, "consistent", "consistent", why=evil, case=evil.replace("/", "_"))
    case["oracles"]["content"] = {"result": evil, "findings": [{"code": evil, "message": evil}]}
    run = {"run": evil, "storage": evil, "hypervisor": evil, "strategies": [case]}
    (tmp_path / "verdict.json").write_text(json.dumps(run))
    checker = _checked(_page(tmp_path))
    assert not {tag for tag, _ in checker.seen} & {"script", "img"}
    assert not any(name.startswith("on") for _, attrs in checker.seen for name in attrs)


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "/etc", "a\0b", "gone"])
def test_a_case_directory_is_never_looked_for_outside_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    case = entry("activate", True, "consistent", "consistent", case=name)
    (run_dir / "verdict.json").write_text(json.dumps({"strategies": [case]}))
    assert "only verdict.json is used" in _page(run_dir)


JUNK: list[object] = [None, True, 7, -1.5, 1e999, "text", [], [[None]], {}, {"a": {}}]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_any_field_of_the_verdict_may_be_anything(junk: object, tmp_path: Path) -> None:
    plain = entry("activate", True, "consistent", "consistent")
    cases: list[object] = [junk, *({**plain, key: junk} for key in plain)]
    inner = [
        {**plain, key: {**plain[key], name: junk}}
        for key in ("oracles", "writes", "blackout_ms", "planted")
        for name in plain[key]
    ]
    (tmp_path / "verdict.json").write_text(
        json.dumps({"run": junk, "storage": junk, "strategies": cases + inner})
    )
    (tmp_path / "soak.json").write_text(
        json.dumps(
            {
                "n": junk,
                "strategies": [junk, {"name": junk, "phases_ms": junk}],
                "ratios": {"a": junk},
                "targets": [junk, {"value": junk, "limit": 1}],
            }
        )
    )
    _checked(_page(tmp_path))


@pytest.mark.parametrize("name", ["events.jsonl", "case.json", "console.jsonl", "reproduce.txt"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]\n", b"\xff\xfe\n", b'{"event": 3}\n' * 9, None]
)
def test_a_torn_record_costs_a_note_never_a_traceback(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    run_dir = make(tmp_path / "run")
    for case_dir in run_dir.glob("*-s1"):
        (case_dir / name).unlink(missing_ok=True)
        if content is not None:
            (case_dir / name).write_bytes(content)
    html = _page(run_dir)
    _checked(html)
    if content is None:
        assert f"{name}" in html


def test_the_command_prints_where_the_report_is(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    result = CliRunner().invoke(report, [str(run_dir), "--soak"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 of 7 cases did NOT end as expected." in result.output
    assert str(run_dir / "report.html") in result.output
    assert "fails" in result.output
    assert (run_dir / "soak.json").is_file()


def test_a_terminal_without_the_records_characters_gets_others(tmp_path: Path) -> None:
    case = entry("activate", True, "consistent", "error", why="Blöcke – 块")
    (tmp_path / "verdict.json").write_text(json.dumps({"strategies": [case]}))
    result = subprocess.run(
        [sys.executable, "-m", "vhdtool.cli.main", "report", str(tmp_path)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"Bl?cke ? ?" in result.stdout


def test_damage_counts_each_sector_once_and_caps_the_list() -> None:
    ranges = [(10, 5), (12, 8), (40, 1), (20, 1), (7, 0), (8, -3)]
    findings = [Finding("content", "lost", "corrupt", "", None, one) for one in ranges]
    assert damage_text(findings) == "12 guest sectors in 2 ranges: 10–20, 40"
    assert damage_text([]) == ""
