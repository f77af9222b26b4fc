"""The mail's diagram of a case: the whole migration to scale, and a zoom onto each blackout."""

from vhdtool.report.drawing.blackout import Blackout, Phase
from vhdtool.report.drawing.primitives import Bar, Drawing, Label, Rule, Scale, text_width
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
from vhdtool.report.figures import milliseconds

PHASE_ROW = 17.0


def overview(line: Timeline, switches: list[Blackout]) -> Drawing:
    """The whole case on one axis in seconds."""
    drawing = Drawing(
        WIDTH, 0, "The migration", "VM.migrate, VDI.attached and VDI.active over time"
    )
    scale = Scale(line.start, line.end, LEFT, RIGHT)
    y = 22.0
    bands = list[tuple[float, float]]()
    for switch in switches:
        left, right = scale.x(switch.start), scale.x(switch.end)
        width = max(right - left, 3.0)
        bands.append((left, width))
        words = f"leg {switch.leg.number}" if len(switches) > 1 else "blackout"
        drawing.shapes.append(Label(left + width / 2, y - 10, words, "point", "middle"))
    heading(drawing, y, "VM.migrate", "")
    _vm_row(drawing, line, scale, y)
    y = host_rows(drawing, line, scale, y + ROW + 2 * GAP, "s")
    y += 16.0 if line.overlaps else 4.0
    # First in painting order, so that everything else lies on top of the bands.
    windows = [Bar(left, 16, width, y - 16, "window", "see below") for left, width in bands]
    drawing.shapes[:0] = windows
    axis(drawing, scale, y, 1.0, line.start, "seconds")
    drawing.height = y + 24
    return drawing


def zoom(line: Timeline, switch: Blackout) -> Drawing:
    """One leg's blackout on an axis in ms from the last acknowledged write."""
    figures = switch.figures()
    leg = switch.leg
    drawing = Drawing(WIDTH, 0, f"Blackout of leg {leg.number}", "phases of the blackout")
    length = max(switch.end - switch.start, 0.002)
    origin = switch.start
    scale = Scale(switch.start - 0.16 * length, switch.end + 0.16 * length, LEFT, RIGHT)
    y = 22.0
    top = y
    _guest_row(drawing, line, scale, y, switch, figures.get("total"))
    y += ROW + 2 * GAP
    for phase in switch.phases:
        heading_y = y - (ROW - PHASE_ROW) / 2
        heading(drawing, heading_y, "phases" if phase is switch.phases[0] else "", phase.name)
        css = _phase_css(line, leg, phase.name)
        _phase(drawing, scale, y, phase, css, figures.get(phase.name))
        y += PHASE_ROW + 3
    y = host_rows(drawing, line, scale, y + GAP, "ms")
    y += 16.0 if _in_view(line, scale) else 4.0
    _points(drawing, leg, scale, top, y)
    axis(drawing, scale, y, 0.001, origin, "ms after last ack" if switch.last_ack else "ms")
    drawing.height = y + 24
    return drawing


def _in_view(line: Timeline, scale: Scale) -> bool:
    return any(start <= scale.end and end >= scale.start for start, end in line.overlaps)


def _vm_row(drawing: Drawing, line: Timeline, scale: Scale, y: float) -> None:
    """Where the guest runs: pre-copy, stop-and-copy, resumed, for every leg in turn."""
    here, since = line.hosts[0] if line.hosts else "", line.start
    for leg in line.legs:
        here = leg.source or here
        runs = f"vm-{host_css(line, here)}"
        _piece(drawing, scale, y, since, leg.started, runs, f"runs on {here}")
        since = leg.started
        copying = f"vm-copy vm-{host_css(line, here)}"
        if leg.suspended is None:
            if leg.cancelled is not None:
                _piece(drawing, scale, y, since, leg.cancelled, copying, "pre-copy, cancelled")
                since = leg.cancelled
            continue
        _piece(drawing, scale, y, since, leg.suspended, copying, "pre-copy")
        stop_end = leg.switched if leg.switched is not None else line.end
        _piece(drawing, scale, y, leg.suspended, stop_end, "vm-stop", "stop-and-copy")
        since = stop_end
        if leg.moved:
            here = leg.destination
    word = "resumed" if any(leg.moved for leg in line.legs) else "runs"
    _piece(drawing, scale, y, since, line.end, f"vm-{host_css(line, here)}", f"{word} on {here}")


def _piece(
    drawing: Drawing, scale: Scale, y: float, start: float, end: float, css: str, words: str
) -> None:
    if end <= start:
        return
    x = scale.x(start)
    width = max(scale.x(end) - x, 2.0)
    drawing.shapes.append(Bar(x, y, width, ROW, css, f"{words}: {(end - start) * 1000:.0f} ms"))
    if text_width(words) + 10 < width:
        drawing.shapes.append(Label(x + 7, y + ROW / 2 + 4, words, "on-vm"))


def _guest_row(
    drawing: Drawing,
    line: Timeline,
    scale: Scale,
    y: float,
    switch: Blackout,
    figure: float | None,
) -> None:
    """Acknowledged writes before and after, and the silence between."""
    leg = switch.leg
    heading(drawing, y, "guest", "")
    before = f"vm-{host_css(line, leg.source)}"
    after_host = leg.destination if leg.moved else leg.source
    left, right = scale.x(switch.start), scale.x(switch.end)
    drawing.shapes.append(Bar(LEFT, y, left - LEFT, ROW, before, f"writes on {leg.source}"))
    if text_width("writes") + 12 < left - LEFT:
        drawing.shapes.append(Label(LEFT + 7, y + ROW / 2 + 4, "writes", "on-vm"))
    if switch.leg.switched is not None:
        css = f"vm-{host_css(line, after_host)}"
        drawing.shapes.append(Bar(right, y, RIGHT - right, ROW, css, f"writes on {after_host}"))
        if text_width("writes") + 12 < RIGHT - right:
            drawing.shapes.append(Label(right + 7, y + ROW / 2 + 4, "writes", "on-vm"))
    drawing.shapes.append(Rule(left, y + ROW / 2, right, y + ROW / 2, "silence"))
    silence = (switch.end - switch.start) * 1000 if figure is None else figure
    words = f"no write acknowledged for {milliseconds(silence)} ms"
    if switch.last_ack is None or switch.first_ack is None:
        words = "acknowledgements not known"
    if text_width(words) + 20 < right - left:
        drawing.shapes.append(
            Label((left + right) / 2, y + ROW / 2 - 4, words, "silence-text", "middle")
        )


def _phase_css(line: Timeline, leg: Leg, name: str) -> str:
    """deactivate and activate have the colour of the host that does it."""
    host = {"deactivate": leg.source, "activate": leg.destination}.get(name)
    return "phase" if host is None else f"active-{host_css(line, host)}"


def _phase(
    drawing: Drawing, scale: Scale, y: float, phase: Phase, css: str, figure: float | None
) -> None:
    x = scale.x(phase.start)
    width = max(scale.x(phase.end) - x, 1.5)
    words = f"{milliseconds((phase.end - phase.start) * 1000 if figure is None else figure)} ms"
    drawing.shapes.append(Bar(x, y, width, PHASE_ROW, css, f"{phase.name}: {words}"))
    if x + width + text_width(words) + 8 < RIGHT:
        drawing.shapes.append(Label(x + width + 6, y + PHASE_ROW - 4, words, "value"))
    else:
        drawing.shapes.append(Label(x - 6, y + PHASE_ROW - 4, words, "value", "end"))


def _points(drawing: Drawing, leg: Leg, scale: Scale, top: float, bottom: float) -> None:
    """SUSPENDED and RESUME (or CANCEL) as dashed lines through all rows."""
    ends = "RESUME" if leg.moved else "CANCEL"
    places = []
    for at, words in ((leg.suspended, "SUSPENDED"), (leg.switched, ends)):
        if at is not None:
            places.append((scale.x(at), words))
            drawing.shapes.append(Rule(scale.x(at), top - 6, scale.x(at), bottom, "point-line"))
    if len(places) == 2 and places[1][0] - places[0][0] < text_width("SUSPENDED RESUME"):
        # Too near for two centred labels: let them lean away from each other.
        drawing.shapes.append(Label(places[0][0] + 3, top - 10, places[0][1], "point", "end"))
        drawing.shapes.append(Label(places[1][0] - 3, top - 10, places[1][1], "point", "start"))
        return
    for x, words in places:
        drawing.shapes.append(Label(x, top - 10, words, "point", "middle"))
