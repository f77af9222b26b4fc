"""Rows that both drawings have: VDI.attached and VDI.active of the two hosts, and the axis."""

from vhdtool.oracle.evidence.events import RELEASES
from vhdtool.report.drawing.primitives import Bar, Drawing, Label, Line, Polygon, Scale, text_width
from vhdtool.report.drawing.timeline import FAILURES, Mark, Span, Timeline
from vhdtool.report.wording import milliseconds

WIDTH = 960.0
LEFT = 168.0
RIGHT = 944.0
ROW = 22.0
GAP = 7.0


def host_css(timeline: Timeline, host: str) -> str:
    """The CSS suffix of a host: a for the first, b for the second."""
    return "a" if timeline.hosts and host == timeline.hosts[0] else "b"


def heading(drawing: Drawing, y: float, group: str, name: str) -> None:
    """Add the two labels of a row in the left margin."""
    middle = y + ROW / 2 + 4
    if group:
        drawing.shapes.append(Label(0, middle, group, "group"))
    drawing.shapes.append(Label(LEFT - 14, middle, name, "name", "end"))


def host_rows(drawing: Drawing, timeline: Timeline, scale: Scale, y: float, unit: str) -> float:
    """Add a row of VDI.attached and one of VDI.active for each host; return the y below them."""
    for index, host in enumerate(timeline.hosts[:2]):
        heading(drawing, y, "VDI.attached" if index == 0 else "", host)
        for span in timeline.attached:
            if span.host == host:
                _bar(
                    drawing,
                    scale,
                    y,
                    span,
                    f"attached-{host_css(timeline, host)}",
                    "attached",
                    unit,
                )
        _marks(drawing, scale, y, [mark for mark in timeline.marks if mark.host == host])
        y += ROW + GAP
    y += GAP
    top = y
    for index, host in enumerate(timeline.hosts[:2]):
        heading(drawing, y, "VDI.active" if index == 0 else "", host)
        for span in timeline.active:
            if span.host == host:
                css = f"active-{host_css(timeline, host)}"
                _bar(drawing, scale, y, span, css, "active", unit)
        y += ROW + GAP
    _overlap(drawing, timeline, scale, top, y - GAP)
    return y


def _bar(
    drawing: Drawing, scale: Scale, y: float, span: Span, css: str, label: str, unit: str
) -> None:
    """Add the bar of a span, with the longest label that fits."""
    if span.end < scale.start or span.start > scale.end:
        return
    x = scale.x(span.start)
    width = max(scale.x(span.end) - x, 2.0)
    # A span that the record does not close has no length.
    length = "until the record ends" if span.open else _length(span.end - span.start, unit)
    reads = "" if span.epochs is None else f", on metadata of epoch {span.epochs[0]}"
    drawing.shapes.append(Bar(x, y, width, ROW, css, f"{span.host} {label}{reads}: {length}"))
    if label == "attached":
        # The marks need the space, and the row's heading says what the bar is.
        return
    for text in (f"{label}{reads}", label):
        if text_width(text) + 14 < width:
            drawing.shapes.append(Label(x + 7, y + ROW / 2 + 4, text, f"on-{css}"))
            return


def _length(seconds: float, unit: str) -> str:
    if unit == "s" and seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{milliseconds(seconds * 1000)} ms"


def _marks(drawing: Drawing, scale: Scale, y: float, marks: list[Mark]) -> None:
    """Add a diamond for each metadata read, a bar for each release; refusals and faults are red."""
    visible = [mark for mark in marks if scale.start <= mark.at <= scale.end]
    positions = [scale.x(mark.at) for mark in visible]
    free = LEFT
    for index, (mark, x) in enumerate(zip(visible, positions, strict=True)):
        middle = y + ROW / 2
        title = f"{mark.event} {mark.detail}".strip()
        if mark.event in RELEASES:
            drawing.shapes.append(Bar(x - 1.5, y - 2, 3, ROW + 4, "release", title))
        else:
            points = ((x, middle - 7), (x + 6, middle), (x, middle + 7), (x - 6, middle))
            css = "bad" if mark.event in FAILURES else "read"
            drawing.shapes.append(Polygon(points, css, title))
        name = mark.event.removesuffix("-injected")
        width = text_width(name)
        until = positions[index + 1] - 8 if index + 1 < len(positions) else RIGHT
        if x + 9 + width <= until:
            drawing.shapes.append(Label(x + 9, middle + 4, name, "mark"))
            free = x + 13 + width
        elif x - 9 - width >= free:
            drawing.shapes.append(Label(x - 9, middle + 4, name, "mark", "end"))
            free = x + 9
        else:
            # The tooltip and the table of events have the name.
            free = x + 9


def _overlap(drawing: Drawing, timeline: Timeline, scale: Scale, top: float, bottom: float) -> None:
    for start, end in timeline.overlaps:
        if end < scale.start or start > scale.end:
            continue
        x = scale.x(start)
        width = max(scale.x(end) - x, 3.0)
        text = f"both active for {_length(end - start, 'ms')}"
        drawing.shapes.append(Bar(x, top - 4, width, bottom - top + 8, "overlap", text))
        centre = x + width / 2
        half = text_width(text) / 2
        centre = min(max(centre, LEFT + half), RIGHT - half)
        y = bottom + 18
        drawing.shapes.append(Label(centre, y, text, "overlap-text", "middle"))


def axis(drawing: Drawing, scale: Scale, y: float, unit: float, origin: float, name: str) -> None:
    """Add the time axis: a timeline, its tick marks, and the unit at the left."""
    drawing.shapes.append(Line(LEFT, y, RIGHT, y, "axis"))
    drawing.shapes.append(Label(LEFT - 14, y + 16, name, "unit", "end"))
    for x, text in scale.ticks(unit, origin):
        drawing.shapes.append(Line(x, y, x, y + 5, "axis"))
        drawing.shapes.append(Label(x, y + 17, text, "tick", "middle"))
