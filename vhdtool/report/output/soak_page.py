"""soak.html: the cases of a soak as strip plots, on one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from vhdtool.report import wording
from vhdtool.report.case import Case
from vhdtool.report.drawing import strips
from vhdtool.report.drawing.primitives import Drawing
from vhdtool.report.output import table
from vhdtool.report.output.case_view import case_anchor
from vhdtool.report.output.html import environment
from vhdtool.report.output.page import soak_rows
from vhdtool.report.run import Run

LISTED = 200
"""Cases that were not as expected, with their reasons; the rest is counted."""


@dataclass(frozen=True)
class Unexpected:
    """A case that was not as expected, with the link to it in report.html."""

    name: str
    case: Case
    href: str


def render_soak_page(run: Run) -> str:
    """Return the page as HTML; `run` has a soak."""
    groups = dict[str, list[Case]]()
    for case in run.cases:
        groups.setdefault(f"{case.strategy}, guard {case.guard_setting}", []).append(case)
    longest = strips.longest_blackout(run.cases)
    blackouts = [(name, strips.phases(name, cases, longest)) for name, cases in groups.items()]
    bad = list(_unexpected(run.cases))
    return (
        environment()
        .get_template("soak.html.j2")
        .render(
            run=run,
            headline=wording.headline(run.cases, run.as_expected, run.error),
            margins=_margins(groups),
            blackouts=[(name, drawing) for name, drawing in blackouts if drawing],
            rows=soak_rows(run),
            lines=table.soak_lines(run.soak),
            unexpected=bad[:LISTED],
            more=len(bad) - LISTED,
        )
    )


def _margins(groups: dict[str, list[Case]]) -> list[tuple[str, Drawing]]:
    """A drawing for each group of expected verdicts that has margins."""
    found = []
    for group in wording.GROUPS:
        own = [
            (name, cases)
            for name, cases in groups.items()
            if cases[0].expected in group.verdicts
            and any(case.margin_ms is not None for case in cases)
        ]
        if own:
            found.append((group.title, strips.margins(f"Margin: {group.title.lower()}", own)))
    return found


def _unexpected(cases: Sequence[Case]) -> list[Unexpected]:
    names = table.case_names(tuple(cases))
    return [
        Unexpected(name, case, f"report.html#{quote(case_anchor(case))}")
        for name, case in zip(names, cases, strict=True)
        if not case.as_expected
    ]
