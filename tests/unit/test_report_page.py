"""report.html holds every case and finding, nothing foreign, and survives any record."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.html_page import checked
from tests.support.synthetic_run import activate, entry, make
from vhdtool.cli.commands.report import report
from vhdtool.errors import UsageError
from vhdtool.report.case import Finding
from vhdtool.report.drawing.paint import PAINT
from vhdtool.report.output.case_view import damage_text
from vhdtool.report.output.files import write_files
from vhdtool.report.run import load_run


def _page(run_dir: Path) -> str:
    return write_files(load_run(run_dir))[1].read_text()


def test_every_case_finding_and_command_is_there(tmp_path: Path) -> None:
    html = _page(make(tmp_path / "run"))
    checker = checked(html)
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
    checker = checked(html)
    assert not {tag for tag, _ in checker.seen} & {"script", "img", "link", "iframe", "object"}
    assert not any("src" in attrs for _, attrs in checker.seen)
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    links = [str(attrs["href"]) for tag, attrs in checker.seen if tag == "a"]
    for link in links:
        assert link.startswith("#") or (run_dir / link).is_file()


def test_each_link_inside_the_page_leads_somewhere(tmp_path: Path) -> None:
    seen = checked(_page(make(tmp_path / "run"))).seen
    ids = [attrs["id"] for _, attrs in seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"]) for tag, attrs in seen if tag == "a"}
    inside = {link.removeprefix("#") for link in links if link.startswith("#")}
    assert inside <= set(ids)
    cases = {name for name in ids if name and name.startswith(("case-", "order-"))}
    assert cases <= inside  # rows lead to their cases, and cases back to their rows


def test_the_page_names_the_software_that_made_the_run(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    assert "<li>vhdtool" not in _page(run_dir)
    (run_dir / "software.json").write_text('{"vhdtool": "0.1.0", "commit": "abc-dirty"}')
    assert "<li>vhdtool <b>0.1.0 abc-dirty</b>" in _page(run_dir)
    (run_dir / "software.json").write_text("[]")
    assert "software.json is not a JSON object" in _page(run_dir)


def test_orders_are_grouped_by_what_became_of_the_disk(tmp_path: Path) -> None:
    html = _page(make(tmp_path / "run"))
    positions = [
        html.index(f'<tbody class="of g-{key}') for key in ("destroys", "refused", "holds")
    ]
    assert positions == sorted(positions)
    sections = re.findall(r'<section class="case of g-(\w+)[^"]*" id="(case-[\w-]+)"', html)
    assert [group for group, _ in sections] == sorted(
        (group for group, _ in sections), key=["destroys", "refused", "holds", "open"].index
    )
    assert ("refused", "case-overlap-on-s1") in sections


def test_three_sentences_tell_who_has_not_read_the_mail(tmp_path: Path) -> None:
    html = _page(make(tmp_path / "run"))
    about = html[: html.index('<table class="cards">')]
    for words in (
        "an order says which of them opens and closes it when",
        "One order is run to be destroyed (overlap, with the guard off)",
        "The guard is a lease on the shared storage",
        "A: deactivate, activate",
        "B: pause, unpause",
        "C: implicit reopen",
    ):
        assert words in about


def test_a_broken_rule_with_whole_data_is_named(tmp_path: Path) -> None:
    lost = entry("reopen-early", False, "corrupt", "corrupt")
    whole = entry("reopen-early", False, "corrupt", "corrupt", seed=2)
    whole["writes"]["lost"] = 0
    for name in ("content", "metadata", "structure"):
        whole["oracles"][name] = {"result": "pass", "findings": []}
    (tmp_path / "verdict.json").write_text(json.dumps({"strategies": [lost, whole]}))
    html = _page(tmp_path)
    assert "243 acknowledged writes lost in 1 of them; " in html
    assert "in 1 of them the rule is broken, the data is whole." in html


def test_pictures_have_colours_without_a_style_sheet(tmp_path: Path) -> None:
    seen = checked(_page(make(tmp_path / "run"))).seen
    groups = [attrs for tag, attrs in seen if tag == "g"]
    assert {"overlap", "active-a", "active-b", "read"} <= {str(one.get("class")) for one in groups}
    for attrs in groups:
        for css in str(attrs.get("class")).split():
            for name in PAINT.get(css, {}):
                assert name in attrs
    assert all("fill" in attrs for tag, attrs in seen if tag == "svg" and "viewbox" in attrs)


def test_the_filter_is_hidden_where_no_style_sheet_shows_it(tmp_path: Path) -> None:
    seen = checked(_page(make(tmp_path / "run"))).seen
    (box,) = [attrs for tag, attrs in seen if attrs.get("class") == "filter"]
    assert "hidden" in box
    shown = [attrs["id"] for tag, attrs in seen if tag == "input"]
    keys = ("all", "destroys", "refused", "holds", "open", "unexpected")
    assert shown == [f"show-{key}" for key in keys]


def _many(run_dir: Path, cases: int) -> Path:
    """A soak of that many cases, each with its record; the last one is not as expected."""
    entries = []
    for seed in range(1, cases + 1):
        verdict = "inconclusive" if seed == cases else "consistent"
        name = f"activate-on-s{seed}"
        case = entry("activate", True, "consistent", verdict, seed=seed, case=name)
        case["margin_ms"] = 9.0 - (seed == 5)
        facts = {"strategy": "activate", "guard": True, "seed": seed, "expected": "consistent"}
        activate().save(run_dir / name, facts)
        entries.append(case)
    (run_dir / "verdict.json").write_text(json.dumps({"strategies": entries}))
    return run_dir


def test_150_cases_stay_under_a_megabyte_and_draw_what_tells_most(tmp_path: Path) -> None:
    run_dir = _many(tmp_path / "run", 150)
    html = _page(run_dir)
    assert len(html) < 1 << 20
    assert len(re.findall(r'<section class="case ', html)) == 150
    drawn = re.findall(r'<section class="case [^"]*(?<!brief)" id="case-activate-on-s(\d+)"', html)
    assert drawn == ["1", "5", "150"]  # the first, the smallest margin, the red one
    asked = CliRunner().invoke(report, [str(run_dir), "--draw", "activate-on-s7"])
    assert asked.exit_code == 0
    assert 'brief" id="case-activate-on-s7"' not in (run_dir / "report.html").read_text()


def test_drawing_a_case_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(report, [str(make(tmp_path / "run")), "--draw", "nope"])
    assert isinstance(result.exception, UsageError)
    assert "has no case 'nope'" in str(result.exception)


def test_hostile_strings_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=y>"
    case = entry(evil, True, "consistent", "consistent", why=evil, case=evil.replace("/", "_"))
    case["oracles"]["content"] = {"result": evil, "findings": [{"code": evil, "message": evil}]}
    run = {"run": evil, "storage": evil, "hypervisor": evil, "strategies": [case]}
    (tmp_path / "verdict.json").write_text(json.dumps(run))
    checker = checked(_page(tmp_path))
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
    checked(_page(tmp_path))


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
    checked(html)
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
