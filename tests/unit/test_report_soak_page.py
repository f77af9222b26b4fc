"""soak.html: a dot for each case, a zero line, links to what was not as expected."""

import json
import re
from pathlib import Path

from tests.support.run_history import ORDERS, make_run
from vhdtool.report.case import parse_entry
from vhdtool.report.drawing import strips
from vhdtool.report.drawing.primitives import Dots, Drawing, Line, Shape
from vhdtool.report.output.files import write_files
from vhdtool.report.output.soak import write_soak
from vhdtool.report.run import load_run


def page(run: Path) -> str:
    write_soak(run)
    write_files(load_run(run))
    return (run / "soak.html").read_text()


def shapes(drawing: Drawing, css: str) -> list[Shape]:
    return [shape for shape in drawing.shapes if shape.css == css]


def dots(drawing: Drawing, css: str = "dot") -> list[tuple[float, float]]:
    return [place for one in shapes(drawing, css) if isinstance(one, Dots) for place in one.points]


def margins(*values: float, verdict: str = "consistent") -> Drawing:
    cases = [
        parse_entry(
            {
                "name": "activate",
                "guard": True,
                "seed": seed,
                "expected": "consistent",
                "verdict": verdict,
                "margin_ms": value,
            }
        )
        for seed, value in enumerate(values)
    ]
    return strips.margins("Margin", [("activate, guard on", cases)])


def zero(drawing: Drawing) -> float:
    (line,) = shapes(drawing, "zero")
    assert isinstance(line, Line)
    assert line.x1 == line.x2
    return line.x1


def test_dots_lie_on_their_side_of_the_zero_line() -> None:
    drawing = margins(-2000, -0.5, 0, 0.5, 40)
    middle = zero(drawing)
    sides = [x - middle for x, _ in dots(drawing)]
    assert sides[0] < sides[1] < 0 == sides[2] < sides[3] < sides[4]
    heights = [y for _, y in dots(drawing)]
    assert heights == sorted(heights), "seeds rise from the top to the bottom"
    assert shapes(drawing, "below-zero")


def test_the_zero_line_is_there_when_all_margins_are_large() -> None:
    assert zero(margins(100, 200)) < min(x for x, _ in dots(margins(100, 200)))
    assert zero(margins(-100, -200)) > max(x for x, _ in dots(margins(-100, -200)))


def test_a_case_that_is_not_as_expected_has_its_own_colour() -> None:
    drawing = margins(1, 2, verdict="corrupt")
    assert not dots(drawing)
    assert len(dots(drawing, "dot-bad")) == 2


def test_150_cases_are_far_below_a_megabyte(tmp_path: Path) -> None:
    def odd(number: int, strategy: str, guard: bool, seed: int) -> str | None:
        return "corrupt" if (strategy, seed) == ("activate", 7) else None

    run = make_run(tmp_path, 0, seeds=10, odd=odd)
    html = page(run)
    assert len(html) < 100_000
    for link in re.findall(r'href="report\.html#(case-[^"]+)"', html):
        assert f'id="{link}"' in (run / "report.html").read_text()
    assert "report.html#case-activate-on-s7" in html
    assert "1 of 150 cases did NOT end as expected" in html
    # A dot for each margin, and a red one for the case that was not as expected.
    drawn = len(re.findall(r"M[-0-9.]+ [-0-9.]+h0", html.split('id="blackouts"')[0]))
    assert 0.9 * 10 * sum(order[3] is not None for order in ORDERS) <= drawn <= 110
    assert html.count("<svg") == 2 + len(ORDERS)
    assert "<script" not in html


def test_a_run_without_repeats_has_no_soak_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0)
    write_files(load_run(run))
    assert not (run / "soak.html").exists()


def test_a_soak_without_any_time_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, seeds=2, odd=lambda *_: "error")
    verdict = json.loads((run / "verdict.json").read_text())
    for entry in verdict["strategies"]:
        entry |= {"margin_ms": None, "blackout_ms": {}}
    (run / "verdict.json").write_text(json.dumps(verdict))
    html = page(run)
    assert "<svg" not in html
    assert "0 of 2" in html
