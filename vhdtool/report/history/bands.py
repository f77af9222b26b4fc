"""Margin and blackout of each order over time, as drawings.

The newest run is at the right. A dot is the median of a run's cases, the line is the median and the
band the span of all values of that run and the runs before it, up to a week's.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.report.drawing.primitives import (
    Bar,
    Dots,
    Drawing,
    Label,
    Line,
    Polygon,
    Polyline,
    Scale,
)
from vhdtool.report.history.orders import Order
from vhdtool.report.wording import milliseconds

WIDTH, HEIGHT = 440.0, 118.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, WIDTH - 8, 20.0, HEIGHT - 20
SPAN = 7
"""Places that a band covers: its own and those before it."""
PLACES = 120
"""Places on the time axis; where there are more runs, neighbours share one."""
FIGURES = {"margin_ms": "margin", "blackout_ms": "blackout"}


@dataclass(frozen=True)
class Band:
    """The values of one figure over time; a place has the values of one run, or of neighbours."""

    figure: str
    places: tuple[tuple[float, ...], ...]
    first: str
    last: str
    runs: int

    @property
    def spans(self) -> list[tuple[float, float, float]]:
        """(least, median, greatest) up to each place."""
        found = []
        for at in range(len(self.places)):
            near = [
                value for place in self.places[max(0, at - SPAN + 1) : at + 1] for value in place
            ]
            found.append((min(near), statistics.median(near), max(near)))
        return found


def band(order: Order, figure: str) -> Band | None:
    """The band of a figure (`margin_ms`, `blackout_ms`); None where no run has it."""
    cells = [(cell, values) for cell in order.cells if (values := cell.values(figure))]
    if not cells:
        return None
    shared = -(-len(cells) // PLACES)
    places = [
        tuple(value for _, values in cells[start : start + shared] for value in values)
        for start in range(0, len(cells), shared)
    ]
    first, last = (cells[at][0].run.at.strftime("%Y-%m-%d") for at in (0, -1))
    return Band(figure, tuple(places), first, last, len(cells))


def draw(band: Band, name: str) -> Drawing:
    """A band on a time axis, with a line at zero."""
    spans = band.spans
    x = Scale(0, max(1, len(spans) - 1), LEFT, RIGHT)
    y = _value_scale(spans)
    title = f"{name}: {FIGURES[band.figure]} in ms, {band.runs} runs"
    low, high = min(span[0] for span in spans), max(span[2] for span in spans)
    about = f"from {milliseconds(low)} to {milliseconds(high)} ms"
    drawing = Drawing(WIDTH, HEIGHT, title, about)
    add = drawing.shapes.append
    zero = y.x(0)
    if band.figure == "margin_ms" and y.start < 0:
        top = y.x(min(0, y.end))
        add(Bar(LEFT, top, RIGHT - LEFT, BOTTOM - top, "below-zero"))
    for at, word in y.ticks(1, 0, about=3):
        add(Line(LEFT, at, RIGHT, at, "tick-line"))
        add(Label(LEFT - 6, at + 4, word, "tick", "end"))
    if y.start <= 0 <= y.end:
        add(Line(LEFT, zero, RIGHT, zero, "zero"))
    upper = [(x.x(at), y.x(span[2])) for at, span in enumerate(spans)]
    lower = [(x.x(at), y.x(span[0])) for at, span in enumerate(spans)]
    add(Polygon(tuple(_stretched(upper) + _stretched(lower)[::-1]), "band"))
    middle = [(x.x(at), y.x(span[1])) for at, span in enumerate(spans)]
    add(Polyline(tuple(_stretched(middle)), "median"))
    dots = [(x.x(at), y.x(statistics.median(place))) for at, place in enumerate(band.places)]
    add(Dots(tuple(dots), "dot"))
    add(Label(LEFT, 12, f"{FIGURES[band.figure]}, ms", "unit"))
    newest = statistics.median(band.places[-1])
    add(Label(RIGHT, 12, f"newest {milliseconds(newest)}", "value", "end"))
    add(Label(LEFT, HEIGHT - 5, band.first, "tick"))
    if band.last != band.first:
        add(Label(RIGHT, HEIGHT - 5, band.last, "tick", "end"))
    return drawing


def _value_scale(spans: Sequence[tuple[float, float, float]]) -> Scale:
    """From the least to the greatest value, and always with the zero."""
    low, high = min(0.0, *(span[0] for span in spans)), max(0.0, *(span[2] for span in spans))
    if low == high:
        high = 1.0
    room = 0.06 * (high - low)
    return Scale(low - (room if low < 0 else 0), high + (room if high > 0 else 0), BOTTOM, TOP)


def _stretched(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A single point as a line across the drawing, so that one run is seen too."""
    return points if len(points) > 1 else [points[0], (RIGHT, points[0][1])]
