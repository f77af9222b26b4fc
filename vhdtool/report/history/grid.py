"""The grid of verdicts as the page shows it: a row an order, a column a run, the newest last."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vhdtool.oracle.verdict import counted
from vhdtool.report.history.compare import option_changes
from vhdtool.report.history.orders import Cell, Outcome, Series
from vhdtool.report.history.runs import PastRun
from vhdtool.report.output.case_view import case_anchor

COLUMNS = 56
"""Runs in one grid, eight weeks of nights; older ones follow in grids of their own."""
MARKS = {
    "consistent": "K", "corrupt": "C", "refused": "R", "inconclusive": "?", "error": "E",
}  # fmt: skip
GOOD, FAILED, UNFINISHED, CHANGED = "✓", "✗", "E", "Δ"
TITLE = 300
"""Characters of a cell's title."""
CLASSES = {Outcome.GOOD: "g", Outcome.WRONG: "w", Outcome.UNPROVED: "u"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A cell of the grid: a character, its class, and for an unusual one why and a link."""

    text: str = ""
    css: str = ""
    title: str = ""
    href: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    guard: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Grid:
    """Some runs in a row: months with their number of columns, days, and the rows of marks."""

    title: str
    months: tuple[tuple[str, int], ...]
    days: tuple[Mark, ...]
    runs: Row
    options: Row | None
    """Where the options differ from those of the run before; None if nowhere."""
    orders: tuple[Row, ...]


def grids(series: Series, page: Path) -> list[Grid]:
    """The grids of a setting, that of the newest runs first; links are relative to `page`."""
    runs = series.runs
    marks = {order.name: {id(cell.run): cell for cell in order.cells} for order in series.orders}
    found = []
    for end in range(len(runs), 0, -COLUMNS):
        start = max(0, end - COLUMNS)
        part = runs[start:end]
        rows = [
            Row(
                order.strategy,
                "on" if order.guard else "off",
                tuple(_mark(marks[order.name].get(id(run)), page) for run in part),
            )
            for order in series.orders
        ]
        found.append(
            Grid(
                title=f"{_day(part[0])} to {_day(part[-1])}, {counted(len(part), 'run')}",
                months=tuple(_months(part)),
                days=tuple(
                    Mark(f"{run.at:%d}", title=run.name, href=_link(run, page)) for run in part
                ),
                runs=Row("run", "", tuple(_run_mark(run) for run in part)),
                options=_option_row(runs, start, end),
                orders=tuple(row for row in rows if any(mark.text for mark in row.marks)),
            )
        )
    return found


def case_link(cell: Cell, page: Path) -> str:
    """The worst case of a cell in the report of its run."""
    return f"{_link(cell.run, page)}#{case_anchor(cell.worst)}"


def _day(run: PastRun) -> str:
    return f"{run.at:%Y-%m-%d}"


def _link(run: PastRun, page: Path) -> str:
    return quote(os.path.relpath(run.path / "report.html", page.parent))


def _months(runs: Iterable[PastRun]) -> Iterable[tuple[str, int]]:
    months = dict[str, int]()
    for run in runs:
        month = f"{run.at:%Y-%m}"
        months[month] = months.get(month, 0) + 1
    for month, columns in months.items():
        yield (month if columns >= 4 else ""), columns


def _mark(cell: Cell | None, page: Path) -> Mark:
    if cell is None:
        return Mark()
    outcome = cell.outcome
    if outcome is Outcome.GOOD:
        return Mark(GOOD, CLASSES[outcome])
    case, bad = cell.worst, cell.unexpected
    many = f"{len(bad)} of {len(cell.cases)} cases: " if len(cell.cases) > 1 else ""
    title = f"{cell.run.name}: {many}{case.verdict}, expected {case.expected}. {case.why}"
    return Mark(MARKS[case.verdict], CLASSES[outcome], _cut(title), case_link(cell, page))


def _cut(title: str) -> str:
    """A title of a length that a page with 1000 runs can have."""
    return title if len(title) <= TITLE else f"{title[:TITLE]}..."


def _run_mark(run: PastRun) -> Mark:
    if run.error:
        title = f"{run.name}: did not finish: {run.error}"
        return Mark(UNFINISHED, CLASSES[Outcome.UNPROVED], _cut(title))
    if run.as_expected:
        return Mark(GOOD, CLASSES[Outcome.GOOD])
    bad = [case for case in run.cases if not case.as_expected]
    title = f"{run.name}: {len(bad)} of {counted(len(run.cases), 'case')} not as expected"
    return Mark(FAILED, CLASSES[Outcome.WRONG], title)


def _option_row(runs: tuple[PastRun, ...], start: int, end: int) -> Row | None:
    marks = []
    for at in range(start, end):
        changes = option_changes(runs[at - 1], runs[at]) if at else []
        # In a lab that follows a branch the commit is another one each night.
        changes = [one for one in changes if one.name != "commit"]
        text = "; ".join(f"{one.name}: {one.before} → {one.after}" for one in changes)
        marks.append(Mark(CHANGED, "", _cut(f"{runs[at].name}: {text}")) if changes else Mark())
    row = Row("options", "", tuple(marks))
    return row if any(mark.text for mark in marks) else None
