"""Strip plots of a soak: margin over seeds on one axis with its zero line, blackout by phase.

In a strip each case is a dot; from the top to the bottom of a strip the seeds rise.
"""

import math
import statistics
from collections.abc import Iterator, Sequence

from vhdtool.report.case import PHASES, Case
from vhdtool.report.drawing.primitives import (
    Bar,
    Dots,
    Drawing,
    Label,
    Line,
    Polyline,
    Scale,
    text_width,
)
from vhdtool.report.wording import milliseconds

WIDTH = 440.0
RIGHT = WIDTH - 10
STRIP, NAME = 18.0, 15.0
"""Heights of a strip, and of the line above it with its name."""
AXIS = 22.0
SPREAD = 5.0
"""The dots of a strip are so far above and below its middle."""

Group = tuple[str, Sequence[Case]]
"""The name of an order, and its cases."""


def margins(title: str, groups: Sequence[Group]) -> Drawing:
    """The margins of several orders on one axis, which is logarithmic beyond 1 ms on both sides."""
    left = 8.0
    values = [case.margin_ms for _, cases in groups for case in cases if case.margin_ms is not None]
    low, high = _folded(min(values, default=0)), _folded(max(values, default=0))
    axis = Scale(min(0, low) - 0.3, max(0, high) + 0.3, left, RIGHT)
    height = len(groups) * (STRIP + NAME) + AXIS
    about = f"{len(values)} cases, from {milliseconds(min(values, default=None))} to "
    drawing = Drawing(WIDTH, height, title, f"{about}{milliseconds(max(values, default=None))} ms")
    add, zero, bottom = drawing.shapes.append, axis.x(0), height - AXIS
    if zero > left + 1:
        add(Bar(left, 0, zero - left, bottom, "below-zero"))
    for at, word in _decades(axis):
        add(Line(at, 0, at, bottom, "tick-line"))
        add(Label(at, height - 8, word, "tick", "middle"))
    add(Line(zero, 0, zero, bottom, "zero"))
    for row, (name, cases) in enumerate(groups):
        top = row * (STRIP + NAME)
        found = [(case, case.margin_ms) for case in cases if case.margin_ms is not None]
        shown = [(case, _folded(value)) for case, value in found]
        _strip(drawing, axis, top + NAME + STRIP / 2, shown)
        add(Label(left + 2, top + 11, name, "value"))
        least = min((value for _, value in found), default=None, key=abs)
        add(Label(RIGHT, top + 11, f"nearest to 0: {milliseconds(least)} ms", "remark", "end"))
    return drawing


def phases(name: str, cases: Sequence[Case], longest: float) -> Drawing | None:
    """Blackout of an order and its phases, on an axis up to `longest` ms; None without any."""
    met = [case for case in cases if case.as_expected]
    rows = [
        (key, [(case, value) for case in met if (value := case.blackout_ms[key]) is not None])
        for key in ("total", *PHASES)
    ]
    rows = [(key, found) for key, found in rows if found]
    if not rows:
        return None
    left = max(text_width(key) for key in ("total", *PHASES)) + 8
    axis = Scale(0, longest, left, RIGHT - 44)
    height = len(rows) * STRIP + AXIS
    drawing = Drawing(WIDTH, height, f"{name}: blackout by phase", f"{len(met)} cases, in ms")
    add, bottom = drawing.shapes.append, height - AXIS
    for at, word in axis.ticks(1, 0, about=5):
        add(Line(at, 0, at, bottom, "tick-line"))
        add(Label(at, height - 8, word, "tick", "middle"))
    for row, (key, found) in enumerate(rows):
        middle = row * STRIP + STRIP / 2
        _strip(drawing, axis, middle, found)
        at = axis.x(statistics.median(value for _, value in found))
        add(Polyline(((at, middle - 7), (at, middle + 7)), "median"))
        add(Label(left - 6, middle + 4, key, "name", "end"))
        word = milliseconds(statistics.median(value for _, value in found))
        add(Label(RIGHT, middle + 4, word, "value", "end"))
    return drawing


def longest_blackout(cases: Sequence[Case]) -> float:
    """The longest blackout or phase of the cases that were as expected, in ms; 1 without any."""
    met = [case.blackout_ms.values() for case in cases if case.as_expected]
    return max((value for values in met for value in values if value is not None), default=1.0)


def _strip(
    drawing: Drawing, axis: Scale, middle: float, found: Sequence[tuple[Case, float]]
) -> None:
    """The dots of one strip; those of cases that were not as expected are painted last."""
    ordered = sorted(found, key=lambda one: (one[0].seed or 0, one[0].directory))
    step = 2 * SPREAD / max(1, len(ordered) - 1)
    first = middle - (SPREAD if len(ordered) > 1 else 0)
    places = [
        (case.as_expected, (axis.x(value), first + row * step))
        for row, (case, value) in enumerate(ordered)
    ]
    for met, css in ((True, "dot"), (False, "dot-bad")):
        points = tuple(place for as_expected, place in places if as_expected == met)
        if points:
            drawing.shapes.append(Dots(points, css))


def _folded(value: float) -> float:
    """A place on the axis: 1 for 1 ms, 2 for 10 ms, 3 for 100 ms; linear between -1 and 1 ms."""
    size = abs(value)
    return math.copysign(size if size <= 1 else 1 + math.log10(size), value)


def _decades(axis: Scale) -> Iterator[tuple[float, str]]:
    for place in range(math.ceil(axis.start), math.floor(axis.end) + 1):
        size = 0 if place == 0 else 10 ** (abs(place) - 1)
        word = f"{'-' if place < 0 else ''}{size}"
        if abs(axis.x(place) - (axis.left + axis.right) / 2) < (axis.right - axis.left) / 2 - 14:
            yield axis.x(place), word
