"""The diagram of a case: the migration to scale, and an enlargement of each blackout."""

from vhdtool.report.drawing.blackout import Blackout, Phase
from vhdtool.report.drawing.primitives import (
    Bar,
    Drawing,
    Label,
    Line,
    Polygon,
    Scale,
    Shape,
    text_width,
)
from vhdtool.report.drawing.rows import (
    GAP,
    LEFT,
    RIGHT,
    ROW,
    WIDTH,
    axis,
    heading,
    host_css,
    host_rows,
)
from vhdtool.report.drawing.timeline import Leg, Timeline
from vhdtool.report.wording import milliseconds

PHASE_ROW = 17.0
DIAMOND = ((13.0, 1.0), (19.0, 8.0), (13.0, 15.0), (7.0, 8.0))


def legend() -> list[tuple[str, Drawing]]:
    """(text, picture) of each kind of shape."""
    shapes: list[tuple[str, Shape]] = [
        *(
            (f"{state}, {host} host", Bar(1, 2, 24, 12, f"{state}-{css}"))
            for css, host in (("a", "first"), ("b", "second"))
            for state in ("attached", "active")
        ),
        ("both active", Bar(1, 2, 24, 12, "overlap")),
        ("metadata read", Polygon(DIAMOND, "read")),
        ("closed or paused", Bar(11, 0, 3, 16, "release")),
        ("refused or fault", Polygon(DIAMOND, "bad")),
    ]
    return [(text, Drawing(26, 16, text, shapes=[shape])) for text, shape in shapes]


def overview(timeline: Timeline, blackouts: list[Blackout]) -> Drawing:
    """Draw the whole case on one axis in seconds."""
    drawing = Drawing(
        WIDTH, 0, "The migration", "VM.migrate, VDI.attached and VDI.active over time"
    )
    scale = Scale(timeline.start, timeline.end, LEFT, RIGHT)
    y = 22.0
    bands = list[tuple[float, float]]()
    for blackout in blackouts:
        left, right = scale.x(blackout.start), scale.x(blackout.end)
        width = max(right - left, 3.0)
        bands.append((left, width))
        text = f"leg {blackout.leg.number}" if len(blackouts) > 1 else "blackout"
        drawing.shapes.append(Label(left + width / 2, y - 10, text, "point", "middle"))
    heading(drawing, y, "VM.migrate", "")
    _vm_row(drawing, timeline, scale, y)
    y = host_rows(drawing, timeline, scale, y + ROW + 2 * GAP, "s")
    y += 16.0 if timeline.overlaps else 4.0
    # The bands come first in painting order, below all else.
    windows = [Bar(left, 16, width, y - 16, "window", "see below") for left, width in bands]
    drawing.shapes[:0] = windows
    axis(drawing, scale, y, 1.0, timeline.start, "seconds")
    drawing.height = y + 24
    return drawing


def zoom(timeline: Timeline, blackout: Blackout) -> Drawing:
    """Draw the blackout of a leg on an axis in ms after the last acknowledged write."""
    durations = blackout.durations_ms()
    leg = blackout.leg
    drawing = Drawing(WIDTH, 0, f"Blackout of leg {leg.number}", "phases of the blackout")
    length = max(blackout.end - blackout.start, 0.002)
    origin = blackout.start
    scale = Scale(blackout.start - 0.16 * length, blackout.end + 0.16 * length, LEFT, RIGHT)
    y = 22.0
    top = y
    _guest_row(drawing, timeline, scale, y, blackout, durations.get("total"))
    y += ROW + 2 * GAP
    for phase in blackout.phases:
        heading_y = y - (ROW - PHASE_ROW) / 2
        heading(drawing, heading_y, "phases" if phase is blackout.phases[0] else "", phase.name)
        css = _phase_css(timeline, leg, phase.name)
        _phase(drawing, scale, y, phase, css, durations.get(phase.name))
        y += PHASE_ROW + 3
    y = host_rows(drawing, timeline, scale, y + GAP, "ms")
    y += 16.0 if _in_view(timeline, scale) else 4.0
    _points(drawing, leg, scale, top, y)
    axis(drawing, scale, y, 0.001, origin, "ms after last ack" if blackout.last_ack else "ms")
    drawing.height = y + 24
    return drawing


def _in_view(timeline: Timeline, scale: Scale) -> bool:
    return any(start <= scale.end and end >= scale.start for start, end in timeline.overlaps)


def _vm_row(drawing: Drawing, timeline: Timeline, scale: Scale, y: float) -> None:
    """Add the row VM.migrate: pre-copy, stop-and-copy and resumed, for each leg in turn."""
    host, since = timeline.hosts[0] if timeline.hosts else "", timeline.start
    for leg in timeline.legs:
        host = leg.source or host
        runs = f"vm-{host_css(timeline, host)}"
        _vm_bar(drawing, scale, y, since, leg.started, runs, f"runs on {host}")
        since = leg.started
        copying = f"vm-copy vm-{host_css(timeline, host)}"
        if leg.suspended is None:
            if leg.cancelled is not None:
                _vm_bar(drawing, scale, y, since, leg.cancelled, copying, "pre-copy, cancelled")
                since = leg.cancelled
            continue
        _vm_bar(drawing, scale, y, since, leg.suspended, copying, "pre-copy")
        stop_end = leg.ran_again if leg.ran_again is not None else timeline.end
        _vm_bar(drawing, scale, y, leg.suspended, stop_end, "vm-stop", "stop-and-copy")
        since = stop_end
        if leg.moved:
            host = leg.destination
    state = "resumed" if any(leg.moved for leg in timeline.legs) else "runs"
    _vm_bar(
        drawing,
        scale,
        y,
        since,
        timeline.end,
        f"vm-{host_css(timeline, host)}",
        f"{state} on {host}",
    )


def _vm_bar(
    drawing: Drawing, scale: Scale, y: float, start: float, end: float, css: str, text: str
) -> None:
    if end <= start:
        return
    x = scale.x(start)
    width = max(scale.x(end) - x, 2.0)
    drawing.shapes.append(Bar(x, y, width, ROW, css, f"{text}: {(end - start) * 1000:.0f} ms"))
    if text_width(text) + 10 < width:
        drawing.shapes.append(Label(x + 7, y + ROW / 2 + 4, text, "on-vm"))


def _guest_row(
    drawing: Drawing,
    timeline: Timeline,
    scale: Scale,
    y: float,
    blackout: Blackout,
    length_ms: float | None,
) -> None:
    """Add the row of the guest: its writes before and after the blackout."""
    leg = blackout.leg
    heading(drawing, y, "guest", "")
    before = f"vm-{host_css(timeline, leg.source)}"
    after_host = leg.destination if leg.moved else leg.source
    left, right = scale.x(blackout.start), scale.x(blackout.end)
    drawing.shapes.append(Bar(LEFT, y, left - LEFT, ROW, before, f"writes on {leg.source}"))
    if text_width("writes") + 12 < left - LEFT:
        drawing.shapes.append(Label(LEFT + 7, y + ROW / 2 + 4, "writes", "on-vm"))
    if blackout.leg.ran_again is not None:
        css = f"vm-{host_css(timeline, after_host)}"
        drawing.shapes.append(Bar(right, y, RIGHT - right, ROW, css, f"writes on {after_host}"))
        if text_width("writes") + 12 < RIGHT - right:
            drawing.shapes.append(Label(right + 7, y + ROW / 2 + 4, "writes", "on-vm"))
    drawing.shapes.append(Line(left, y + ROW / 2, right, y + ROW / 2, "silence"))
    if length_ms is None:
        length_ms = (blackout.end - blackout.start) * 1000
    text = f"no write acknowledged for {milliseconds(length_ms)} ms"
    if blackout.last_ack is None or blackout.first_ack is None:
        text = "acknowledgements not known"
    if text_width(text) + 20 < right - left:
        drawing.shapes.append(
            Label((left + right) / 2, y + ROW / 2 - 4, text, "silence-text", "middle")
        )


def _phase_css(timeline: Timeline, leg: Leg, name: str) -> str:
    """The CSS class of a phase: deactivate and activate have the colour of their host."""
    host = {"deactivate": leg.source, "activate": leg.destination}.get(name)
    return "phase" if host is None else f"active-{host_css(timeline, host)}"


def _phase(
    drawing: Drawing, scale: Scale, y: float, phase: Phase, css: str, length_ms: float | None
) -> None:
    x = scale.x(phase.start)
    width = max(scale.x(phase.end) - x, 1.5)
    if length_ms is None:
        length_ms = (phase.end - phase.start) * 1000
    text = f"{milliseconds(length_ms)} ms"
    drawing.shapes.append(Bar(x, y, width, PHASE_ROW, css, f"{phase.name}: {text}"))
    if x + width + text_width(text) + 8 < RIGHT:
        drawing.shapes.append(Label(x + width + 6, y + PHASE_ROW - 4, text, "value"))
    else:
        drawing.shapes.append(Label(x - 6, y + PHASE_ROW - 4, text, "value", "end"))


def _points(drawing: Drawing, leg: Leg, scale: Scale, top: float, bottom: float) -> None:
    """Add SUSPENDED and RESUME (or CANCEL) as dashed lines through all rows.

    A cancel may be recorded only after the guest's first write, and so outside of the scale.
    """
    end = "RESUME" if leg.moved else "CANCEL"
    labels = []
    for at, text in ((leg.suspended, "SUSPENDED"), (leg.ran_again, end)):
        if at is not None and scale.start <= at <= scale.end:
            labels.append((scale.x(at), text))
            drawing.shapes.append(Line(scale.x(at), top - 6, scale.x(at), bottom, "point-line"))
    if len(labels) == 2 and labels[1][0] - labels[0][0] < text_width("SUSPENDED RESUME"):
        # Too close for two centred labels: align them away from each other.
        drawing.shapes.append(Label(labels[0][0] + 3, top - 10, labels[0][1], "point", "end"))
        drawing.shapes.append(Label(labels[1][0] - 3, top - 10, labels[1][1], "point", "start"))
        return
    for x, text in labels:
        centre = min(x, WIDTH - text_width(text) / 2)
        drawing.shapes.append(Label(centre, top - 10, text, "point", "middle"))
