"""The terminal's tables say everything, at 80 columns as at 120, in a pipe as in colour."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from tests.support.synthetic_run import entry, make
from vhdtool.lab.strategies import STRATEGIES
from vhdtool.report import wording
from vhdtool.report.case import parse_entry
from vhdtool.report.output.soak import summarise
from vhdtool.report.output.table import case_names, print_tables
from vhdtool.report.run import Run, load_run


def _shown(run: Run, width: int, colour: bool = False) -> list[str]:
    out = io.StringIO()
    system: Literal["standard", "auto"] = "standard" if colour else "auto"
    print_tables(run, Console(file=out, width=width, force_terminal=colour, color_system=system))
    return out.getvalue().splitlines()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(make(tmp_path / "run"))


@pytest.mark.parametrize("width", [80, 90, 100, 120, 200])
def test_each_case_is_one_unbroken_line_of_a_table(run: Run, width: int) -> None:
    lines = _shown(run, width)
    rows = [line.split() for line in lines if line.startswith("activate-retry ")]
    assert len(rows) == (1 if width >= 115 else 2)
    cells = [cell for row in rows for cell in row]
    for cell in ("on", "consistent", "yes", "480", "48.0", "4.0", "11.0", "31.0", "1.6"):
        assert cell in cells
    table = lines[: lines.index(next(line for line in lines if "expected consistent" in line))]
    assert all(len(line) <= width for line in table)
    assert not any("…" in line for line in lines)


def test_a_pipe_gets_headings_on_one_line(run: Run) -> None:
    command = [sys.executable, "-m", "vhdtool.cli.main", "report", str(run.path)]
    environment = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    for more, folded in (({}, False), ({"COLUMNS": "100"}, True)):
        done = subprocess.run(
            command, env={**environment, **more}, check=True, capture_output=True, text=True
        )
        head = done.stdout.splitlines()[0].split()
        assert (head[0] == "as") is folded, done.stdout
        assert ("deactivate" in head) is not folded


def test_a_pipe_gets_no_escapes_and_colour_no_other_words(run: Run) -> None:
    plain, coloured = _shown(run, 100), _shown(run, 100, colour=True)
    assert not any("\x1b" in line for line in plain)
    assert any("\x1b" in line for line in coloured)


def test_what_was_not_as_expected_is_explained(run: Run) -> None:
    text = "\n".join(_shown(run, 80))
    assert "hold-on-s1: expected consistent, got error. beta's QEMU died." in text
    assert "| qemu-system-x86_64: terminating on signal 11" in text
    assert "again: make lab STRATEGY=hold SEED=1 GUARD=on" in text
    assert "overlap-off-s1" not in text


def test_markup_in_a_record_is_only_text(run: Run) -> None:
    case = dataclasses.replace(run.cases[-1], why="[bold]x[/] [link=y]", expected="[red]")
    text = "\n".join(_shown(dataclasses.replace(run, cases=(case,)), 120))
    assert "[bold]x[/] [link=y]" in text
    assert "[red]" in text


def test_a_record_cannot_command_the_terminal(tmp_path: Path) -> None:
    case = entry("activate", True, "consistent", "error", why="\x1b]0;owned\x07\x9b2J\ud800\r")
    (tmp_path / "verdict.json").write_text(json.dumps({"strategies": [case]}))
    shown = "\n".join(_shown(load_run(tmp_path), 80))
    assert "got error. \ufffd]0;owned\ufffd\ufffd2J\ufffd\ufffd" in shown
    shown.encode()


def test_every_order_of_the_lab_is_described_in_words() -> None:
    described = [entry(name, True, "corrupt", "corrupt") for name in STRATEGIES]
    assert all(all(wording.describe(parse_entry(one))) for one in described)
    given = parse_entry(entry("custom", True, "corrupt", "corrupt"))
    assert wording.describe(given) == ("", "")
    given = dataclasses.replace(given, given="D.attach | |")
    assert wording.describe(given) == ("D.attach | |", "The order that was given: D.attach | |.")


def test_names_grow_only_as_far_as_they_must() -> None:
    keys = [("a", 1), ("b", 1), ("b", 2), ("c", 1), ("c", 1)]
    cases = [parse_entry(entry(n, True, "corrupt", "corrupt", seed=s)) for n, s in keys]
    assert case_names(tuple(cases)) == ["a", "b s1", "b s2", "c s1 #1", "c s1 #2"]


def test_a_long_soak_shows_its_table_and_the_bound_alone(tmp_path: Path) -> None:
    runs = [entry("activate", True, "consistent", "consistent", seed=n) for n in range(50)]
    verdict = {"as_expected": True, "strategies": runs}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    (tmp_path / "soak.json").write_text(json.dumps(summarise(verdict)))
    for width in (80, 120):
        lines = _shown(load_run(tmp_path), width)
        (row,) = [line.split() for line in lines if line.startswith("activate ")]
        assert row[:5] == ["activate", "on", "consistent", "50/50", "5.8%"]
        assert any("deactivate + activate: 3.00 ms (limit 5): met" in line for line in lines)
