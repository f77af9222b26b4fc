"""report.html: one self-contained page, rendered from a template."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vhdtool.report import wording
from vhdtool.report.case import PHASES, Case
from vhdtool.report.drawing.diagram import legend
from vhdtool.report.lenient_json import integer, items, mapping, number, text
from vhdtool.report.output import table
from vhdtool.report.output.case_view import CaseView, case_view, row_anchor
from vhdtool.report.output.html import environment
from vhdtool.report.run import Run

MANY = 40
"""A run with more cases has not all of them drawn: 150 drawings are 2 MB."""
LINKED = 20
"""Cases that a row of the table of verdicts links to."""


@dataclass(frozen=True)
class Row:
    """A row of the table of verdicts."""

    anchor: str
    summary: wording.Summary
    cases: tuple[CaseView, ...]
    more: int


@dataclass(frozen=True)
class Section:
    """A group of the page: its rows in the table of verdicts, and its cases."""

    group: wording.Group
    rows: tuple[Row, ...]
    views: tuple[CaseView, ...]


def render_page(run: Run, draw: Collection[str] = ()) -> str:
    """Return the report as HTML; `draw` names case directories to draw in any event."""
    names = table.case_names(run.cases)
    drawn = {*drawn_cases(run.cases), *draw}
    views = [
        case_view(case, name, case.directory in drawn)
        for case, name in zip(run.cases, names, strict=True)
    ]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            views=views,
            sections=_sections(run.cases, views),
            unexpected=[view for view in views if not view.case.as_expected],
            linked=LINKED,
            not_drawn=sum(not view.drawn for view in views),
            headline=wording.headline(run.cases, run.as_expected, run.error),
            question=wording.QUESTION,
            introduction=wording.introduction(run.cases),
            cures=wording.CURES,
            verdicts=wording.VERDICTS,
            groups=[group.key for group in wording.GROUPS],
            limits=(wording.LOCAL_LIMIT, *wording.LIMITS),
            phases=PHASES,
            legend=legend(),
            soak_rows=soak_rows(run),
            soak_lines=table.soak_lines(run.soak) if run.soak else [],
        )
    )


def drawn_cases(cases: Iterable[Case]) -> set[str]:
    """The directories of the cases to draw: all of them, or of many the ones that tell most.

    Those are the cases that were not as expected, then of each strategy with one guard setting the
    first case and the one with the smallest margin.
    """
    cases = list(cases)
    if len(cases) <= MANY:
        return {case.directory for case in cases}
    groups = dict[tuple[str, bool], list[Case]]()
    for case in cases:
        groups.setdefault((case.strategy, case.guard), []).append(case)
    chosen = [case for case in cases if not case.as_expected]
    chosen += [members[0] for members in groups.values()]
    for members in groups.values():
        measured = [case for case in members if case.margin_ms is not None]
        chosen += sorted(measured, key=lambda case: case.margin_ms or 0)[:1]
    return set(list(dict.fromkeys(case.directory for case in chosen))[:MANY])


def _sections(cases: tuple[Case, ...], views: list[CaseView]) -> list[Section]:
    """The groups that the run has, in the order of `wording.GROUPS`."""
    rows = dict[str, list[Row]]()
    for summary in wording.summaries(cases):
        anchor = row_anchor(summary.strategy, summary.guard)
        members = [view for view in views if view.row == anchor]
        members.sort(key=lambda view: view.case.as_expected)
        rows.setdefault(wording.group_of(summary.verdict).key, []).append(
            Row(anchor, summary, tuple(members[:LINKED]), max(0, len(members) - LINKED))
        )
    return [
        Section(
            group,
            tuple(rows.get(group.key, ())),
            tuple(view for view in views if view.group == group.key),
        )
        for group in wording.GROUPS
        if group.key in rows or any(view.group == group.key for view in views)
    ]


def soak_rows(run: Run) -> list[dict[str, object]]:
    """The table of a soak, a row an order, from soak.json of the run."""
    rows = list[dict[str, object]]()
    for entry in map(mapping, items(run.soak.get("strategies"))):
        blackout, phases = mapping(entry.get("blackout_ms")), mapping(entry.get("phases_ms"))
        rows.append(
            {
                "name": text(entry.get("name"), "?"),
                "guard": "on" if entry.get("guard") is True else "off",
                "expected": text(entry.get("expected"), "?"),
                "met": integer(entry.get("as_expected")) or 0,
                "runs": integer(entry.get("runs")) or 0,
                "bound": number(entry.get("bound_95")),
                "median": number(blackout.get("median")),
                "p90": number(blackout.get("p90")),
                "phases": [number(mapping(phases.get(key)).get("median")) for key in PHASES],
                "margin": number(mapping(entry.get("margin_ms")).get("min")),
            }
        )
    return rows
