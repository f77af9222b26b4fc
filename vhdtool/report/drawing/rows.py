"""Rows that both drawings share: the two hosts' VDI.attached and VDI.active bars."""

from vhdtool.oracle.evidence.events import RELEASES
from vhdtool.report.drawing.primitives import Bar, Drawing, Label, Rule, Scale, Shape, text_width
from vhdtool.report.drawing.timeline import TROUBLE, Mark, Span, Timeline
from vhdtool.report.figures import milliseconds

WIDTH = 960.0
LEFT = 168.0
RIGHT = 944.0
ROW = 22.0
GAP = 7.0


def host_css(line: Timeline, host: str) -> str:
    """Class of a host's colour: a for the first host, b for the second."""
    return "a" if line.hosts and host == line.hosts[0] else "b"


def heading(drawing: Drawing, y: float, group: str, name: str) -> None:
    """A row's two labels in the left margin."""
    middle = y + ROW / 2 + 4
    if group:
        drawing.shapes.append(Label(0, middle, group, "group"))
    drawing.shapes.append(Label(LEFT - 14, middle, name, "name", "end"))


def host_rows(drawing: Drawing, line: Timeline, scale: Scale, y: float, unit: str) -> float:
    """Adds VDI.attached and VDI.active, a row a host; returns the y below them."""
    for index, host in enumerate(line.hosts[:2]):
        heading(drawing, y, "VDI.attached" if index == 0 else "", host)
        for span in line.attached:
            if span.host == host:
                _bar(drawing, scale, y, span, f"attached-{host_css(line, host)}", "attached", unit)
        _marks(drawing, scale, y, [mark for mark in line.marks if mark.host == host])
        y += ROW + GAP
    y += GAP
    top = y
    for index, host in enumerate(line.hosts[:2]):
        heading(drawing, y, "VDI.active" if index == 0 else "", host)
        for span in line.active:
            if span.host == host:
                css = f"active-{host_css(line, host)}"
                _bar(drawing, scale, y, span, css, "active", unit)
        y += ROW + GAP
    _overlap(drawing, line, scale, top, y - GAP)
    return y


def _bar(
    drawing: Drawing, scale: Scale, y: float, span: Span, css: str, word: str, unit: str
) -> None:
    """A span's bar, with the longest label that fits into it."""
    if span.end < scale.start or span.start > scale.end:
        return
    x = scale.x(span.start)
    width = max(scale.x(span.end) - x, 2.0)
    # What was still held when the record ends has no length of its own.
    lasting = "until the record ends" if span.lasting else _length(span.end - span.start, unit)
    reads = "" if span.epochs is None else f", on metadata of epoch {span.epochs[0]}"
    drawing.shapes.append(Bar(x, y, width, ROW, css, f"{span.host} {word}{reads}: {lasting}"))
    if word == "attached":
        # No label: the marks need the room, and the row says what it is.
        return
    for label in (f"{word}{reads}", word):
        if text_width(label) + 14 < width:
            drawing.shapes.append(Label(x + 7, y + ROW / 2 + 4, label, f"on-{css}"))
            return


def _length(seconds: float, unit: str) -> str:
    if unit == "s" and seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{milliseconds(seconds * 1000)} ms"


def _marks(drawing: Drawing, scale: Scale, y: float, marks: list[Mark]) -> None:
    """A diamond for a metadata read, a bar for a release, red for a refusal or a fault."""
    seen = [mark for mark in marks if scale.start <= mark.at <= scale.end]
    places = [scale.x(mark.at) for mark in seen]
    free = LEFT
    for index, (mark, x) in enumerate(zip(seen, places, strict=True)):
        middle = y + ROW / 2
        title = f"{mark.event} {mark.detail}".strip()
        if mark.event in RELEASES:
            drawing.shapes.append(Bar(x - 1.5, y - 2, 3, ROW + 4, "release", title))
        else:
            points = ((x, middle - 7), (x + 6, middle), (x, middle + 7), (x - 6, middle))
            css = "bad" if mark.event in TROUBLE else "read"
            drawing.shapes.append(Shape(points, css, title))
        word = mark.event.removesuffix("-injected")
        width = text_width(word)
        until = places[index + 1] - 8 if index + 1 < len(places) else RIGHT
        if x + 9 + width <= until:
            drawing.shapes.append(Label(x + 9, middle + 4, word, "mark"))
            free = x + 13 + width
        elif x - 9 - width >= free:
            drawing.shapes.append(Label(x - 9, middle + 4, word, "mark", "end"))
            free = x + 9
        else:
            # No room for its name: the title and the table of events have it.
            free = x + 9


def _overlap(drawing: Drawing, line: Timeline, scale: Scale, top: float, bottom: float) -> None:
    for start, end in line.overlaps:
        if end < scale.start or start > scale.end:
            continue
        x = scale.x(start)
        width = max(scale.x(end) - x, 3.0)
        words = f"both active for {_length(end - start, 'ms')}"
        drawing.shapes.append(Bar(x, top - 4, width, bottom - top + 8, "overlap", words))
        here = x + width / 2
        half = text_width(words) / 2
        here = min(max(here, LEFT + half), RIGHT - half)
        y = bottom + 18
        drawing.shapes.append(Label(here, y, words, "overlap-text", "middle"))


def axis(drawing: Drawing, scale: Scale, y: float, unit: float, origin: float, name: str) -> None:
    """The time axis: a line, round marks, and the unit at its left."""
    drawing.shapes.append(Rule(LEFT, y, RIGHT, y, "axis"))
    drawing.shapes.append(Label(LEFT - 14, y + 16, name, "unit", "end"))
    for x, words in scale.ticks(unit, origin):
        drawing.shapes.append(Rule(x, y, x, y + 5, "axis"))
        drawing.shapes.append(Label(x, y + 17, words, "tick", "middle"))
