"""history.html: one self-contained page, rendered from a template."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.report.drawing.primitives import Drawing
from vhdtool.report.history import compare
from vhdtool.report.history.bands import FIGURES, SPAN, band, draw
from vhdtool.report.history.compare import Comparison
from vhdtool.report.history.grid import MARKS, Grid, case_link, grids
from vhdtool.report.history.orders import RULES, Order, Outcome, Series, Status, series
from vhdtool.report.history.runs import Runs
from vhdtool.report.output.files import write_beside
from vhdtool.report.output.html import environment


@dataclass(frozen=True)
class Rates:
    """A row of the table of rates."""

    order: Order
    first_bad: str
    first_bad_link: str


@dataclass(frozen=True)
class SeriesView:
    """The runs of one setting as the template shows them."""

    series: Series
    grids: tuple[Grid, ...]
    rates: tuple[Rates, ...]
    bands: tuple[tuple[str, tuple[Drawing, ...]], ...]


def write_page(page: Path, runs: Runs, comparison: Comparison | None) -> None:
    """Write the page, or leave an old one as it is. Raises UsageError."""
    content = render_page(runs, page, comparison).encode("utf-8", errors="replace")
    try:
        part = write_beside(page, content)
        try:
            os.replace(part, page)
        except OSError:
            os.unlink(part)
            raise
    except OSError as error:
        raise UsageError(
            f"{page}: cannot be written ({error.strerror}); give another path: --output FILE"
        ) from error


def render_page(runs: Runs, page: Path, comparison: Comparison | None) -> str:
    """Return the history as HTML; `page` is where it will be, for the links to the runs."""
    views = [_view(one, page) for one in series(runs.runs)]
    return (
        environment()
        .get_template("history.html.j2")
        .render(
            runs=runs.runs,
            newest=runs.runs[-1],
            skipped=runs.skipped,
            views=views,
            noted=list(_noted(views)),
            comparison=comparison,
            median_of=compare.median_of,
            lost_text=compare.lost_text,
            verdict_text=compare.verdict_text,
            marks=MARKS,
            rules=RULES,
            span=SPAN,
            outcomes=Outcome,
        )
    )


def _noted(views: list[SeriesView]) -> Iterator[tuple[Order, str]]:
    """The orders that the top of the page names, with their setting if there are several."""
    for view in views:
        setting = f" ({view.series.setting})" if len(views) > 1 else ""
        for order in view.series.orders:
            if order.status is not Status.STEADY:
                yield order, setting


def _view(series: Series, page: Path) -> SeriesView:
    return SeriesView(
        series,
        tuple(grids(series, page)),
        tuple(_rates(order, page) for order in series.orders),
        tuple(found for order in series.orders if (found := _bands(order))[1]),
    )


def _rates(order: Order, page: Path) -> Rates:
    bad = order.first_bad
    return Rates(order, bad.run.name if bad else "", case_link(bad, page) if bad else "")


def _bands(order: Order) -> tuple[str, tuple[Drawing, ...]]:
    found = [band(order, figure) for figure in FIGURES]
    return order.name, tuple(draw(one, order.name) for one in found if one)
