"""Bars, labels, lines and polygons of a drawing, and the scale of its time axis.

The shapes are plain values, which tests can inspect; templates/drawing.svg.j2 renders them as SVG.
Lengths are in units of the drawing: 1 unit is 1 CSS pixel at full size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

CHAR = 6.3
"""Mean width of a character of the labels' 11.5-pixel sans-serif."""


@dataclass(frozen=True)
class Bar:
    """A rectangle; `css` is its class, `title` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    css: str
    title: str = ""
    kind: str = "bar"


@dataclass(frozen=True)
class Label:
    """Text whose baseline is at y; anchor is start, middle or end."""

    x: float
    y: float
    text: str
    css: str = ""
    anchor: str = "start"
    kind: str = "label"


@dataclass(frozen=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    css: str = ""
    kind: str = "line"


@dataclass(frozen=True)
class Polygon:
    """A closed polygon; points are (x, y)."""

    points: tuple[tuple[float, float], ...]
    css: str = ""
    title: str = ""
    kind: str = "polygon"

    @property
    def svg_points(self) -> str:
        return " ".join(f"{decimal(x)},{decimal(y)}" for x, y in self.points)


@dataclass(frozen=True)
class Polyline:
    """Straight lines through points (x, y), not filled."""

    points: tuple[tuple[float, float], ...]
    css: str = ""
    kind: str = "polyline"

    @property
    def svg_points(self) -> str:
        return " ".join(f"{decimal(x)},{decimal(y)}" for x, y in self.points)


@dataclass(frozen=True)
class Dots:
    """Many equal dots in one element; those that fall on the same place are drawn once.

    The dots are strokes without length and with round ends: a dot costs a dozen bytes.
    """

    points: tuple[tuple[float, float], ...]
    css: str = ""
    kind: str = "dots"

    @property
    def svg_path(self) -> str:
        places = {f"M{decimal(x)} {decimal(y)}h0": None for x, y in self.points}
        return "".join(places)


Shape = Bar | Label | Line | Polygon | Polyline | Dots


@dataclass(frozen=True)
class Group:
    """Shapes of one kind and class that follow each other."""

    kind: str
    css: str
    anchor: str
    shapes: tuple[Shape, ...]


@dataclass
class Drawing:
    """Shapes in painting order, but labels are painted last.

    `title` and `description` are for screen readers.
    """

    width: float
    height: float
    title: str
    description: str = ""
    shapes: list[Shape] = field(default_factory=list)

    def painted(self) -> list[Shape]:
        """The shapes with all labels at the end, sorted by class; a label without text is none."""
        labels = [shape for shape in self.shapes if isinstance(shape, Label) and shape.text]
        labels.sort(key=lambda label: (label.css, label.anchor))
        return [*(shape for shape in self.shapes if not isinstance(shape, Label)), *labels]

    def groups(self) -> Iterator[Group]:
        """Neighbours of one class: the page names class and colours once for all of them."""

        def look(shape: Shape) -> tuple[str, str, str]:
            return shape.kind, shape.css, shape.anchor if isinstance(shape, Label) else ""

        for (kind, css, anchor), shapes in groupby(self.painted(), look):
            yield Group(kind, css, anchor, tuple(shapes))


@dataclass(frozen=True)
class Scale:
    """A linear map of times start..end to x left..right; times outside are clipped."""

    start: float
    end: float
    left: float
    right: float

    def x(self, at: float) -> float:
        if self.end <= self.start:
            return self.left
        share = (at - self.start) / (self.end - self.start)
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)

    def ticks(self, unit: float, origin: float, about: int = 8) -> list[tuple[float, str]]:
        """Round tick marks as (x, text): times relative to `origin`, in units of `unit` seconds."""
        first, last = (self.start - origin) / unit, (self.end - origin) / unit
        if last <= first:
            return []
        raw = (last - first) / about
        base = 10 ** math.floor(math.log10(raw))
        step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw * 0.999)
        marks = list[tuple[float, str]]()
        index = math.ceil(first / step - 1e-9)
        while index * step <= last + 1e-9 * step and len(marks) < 50:
            value = index * step
            marks.append((self.x(origin + value * unit), f"{value:.10g}"))
            index += 1
        return marks


def decimal(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def text_width(text: str) -> float:
    """Estimated width of a label."""
    return len(text) * CHAR
