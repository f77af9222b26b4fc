"""The history and the comparison of two runs on the terminal: plain lines, the same in a pipe."""

from collections.abc import Iterator, Sequence

import click

from vhdtool.oracle.verdict import counted
from vhdtool.report.history.compare import Comparison, Pair, lost_text, median_of, verdict_text
from vhdtool.report.history.grid import MARKS
from vhdtool.report.history.orders import Cell, Outcome, Series, Status, series
from vhdtool.report.history.runs import Runs
from vhdtool.report.wording import milliseconds, percent

NEWEST = 20
"""Runs whose marks a line has."""
SKIPPED = 10
"""Skipped directories that are named; the page names all."""
COLOURS = {Status.FAILING: "red", Status.FLAKY: "yellow"}


def summary_lines(runs: Runs) -> Iterator[str]:
    """The rates of each order, then what is not steady, then what was skipped."""
    first, last = (f"{run.at:%Y-%m-%d}" for run in (runs.runs[0], runs.runs[-1]))
    good = sum(run.as_expected for run in runs.runs)
    yield f"{counted(len(runs.runs), 'run')}, {first} to {last}, {good} as expected"
    for one in series(runs.runs):
        yield ""
        yield f"{one.setting}: {counted(len(one.runs), 'run')}"
        yield from _rates(one)
    if runs.skipped:
        yield ""
        yield f"skipped {len(runs.skipped)}, which are no runs that can be read:"
        yield from (f"  {one.name}: {one.reason}" for one in runs.skipped[:SKIPPED])
        if len(runs.skipped) > SKIPPED:
            yield f"  and {len(runs.skipped) - SKIPPED} more"


def _rates(one: Series) -> Iterator[str]:
    rows = [("order", "guard", "cases", "bad", "95 % bounds", f"newest {NEWEST}", "status")]
    for order in one.orders:
        low, high = order.bounds
        rows.append(
            (
                order.strategy,
                "on" if order.guard else "off",
                str(len(order.cases)),
                str(order.unexpected),
                f"{percent(low)} - {percent(high)}",
                "".join(_mark(cell) for cell in order.cells[-NEWEST:]),
                order.status.value,
            )
        )
    lines = _aligned(rows, right={2, 3, 4})
    yield lines[0]
    for line, order in zip(lines[1:], one.orders, strict=True):
        yield click.style(line, fg=COLOURS.get(order.status))
    yield from (f"{order.name}: {order.sentence}" for order in one.orders if order.first_bad)


def _mark(cell: Cell) -> str:
    return "." if cell.outcome is Outcome.GOOD else MARKS[cell.worst.verdict]


def comparison_lines(compared: Comparison) -> Iterator[str]:
    """The options that differ, the verdicts that changed, and the figures of both runs."""
    old, new = compared.before, compared.after
    for mark, run in (("-", old), ("+", new)):
        how = (
            f"did not finish: {run.error}"
            if run.error
            else ("as expected" if run.as_expected else "not as expected")
        )
        yield f"{mark} {run.name}: {counted(len(run.cases), 'case')}, {how}"
    yield ""
    for name in compared.unknown:
        yield f"{name} has no config.json: its options are not known"
    if compared.options:
        yield "options that differ:"
        changes = [("", one.name, one.before, "->", one.after) for one in compared.options]
        yield from _aligned(changes)
    else:
        yield "no option differs"
    yield ""
    changed = compared.changed
    yield f"verdicts: {len(changed)} of {counted(len(compared.pairs), 'order')} differ"
    for pair in changed:
        yield from _changed(pair)
    yield ""
    rows = [("order", "lost", "", "margin ms", "", "blackout ms", "", "ratio")]
    rows += [
        (pair.name, *_both(pair, "lost"), *_both(pair, "margin_ms"), *_both(pair, "blackout_ms"),
         _ratio(pair))
        for pair in compared.pairs
    ]  # fmt: skip
    yield from _aligned(rows, right={1, 2, 3, 4, 5, 6, 7})
    yield "of each pair the first is that of the first run; medians of the cases as expected"


def _changed(pair: Pair) -> Iterator[str]:
    before, after = (verdict_text(one) if one else "not run" for one in (pair.before, pair.after))
    line = f"  {pair.kind}: {pair.name}: {before} -> {after}"
    yield click.style(line, fg={"worse": "red", "better": "green"}.get(pair.kind))
    if pair.after and pair.after.unexpected:
        yield f"    {pair.after.worst.why}"


def _both(pair: Pair, figure: str) -> tuple[str, str]:
    old, new = (
        (lost_text(cell) if cell else "-") if figure == "lost"
        else milliseconds(median_of(cell, figure))
        for cell in (pair.before, pair.after)
    )  # fmt: skip
    return old, new


def _ratio(pair: Pair) -> str:
    return "-" if pair.blackout_ratio is None else f"{pair.blackout_ratio:.2f}"


def _aligned(
    rows: Sequence[Sequence[str]], right: frozenset[int] | set[int] = frozenset()
) -> list[str]:
    """Rows as lines whose columns are two spaces apart."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            word.rjust(width) if at in right else word.ljust(width)
            for at, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
