"""Events of a case -> the bars of the mail's diagram: who had the disk attached, who was active.

All times are seconds of the controller's clock (`mono` of the events; host stamps have been
converted to it by the recorder). Whether two activations overlap is decided by epochs, which
order both hosts' reads and releases without a clock; times only place the overlap on the axis.
"""

from dataclasses import dataclass, field
from typing import Any

from vhdtool.report.loose import integer, number, text

READS = ("opened", "activated", "unpaused")
RELEASES = ("paused", "closed", "deactivated")
MARKED = (*READS, *RELEASES, "refused", "fenced", "fault-injected")


@dataclass(frozen=True)
class Span:
    """A stretch of time on one host; `lasting`: it was not seen to end."""

    host: str
    start: float
    end: float
    lasting: bool = False
    epochs: tuple[int | None, int | None] = (None, None)

    def during(self, other: "Span") -> tuple[float, float]:
        """The common stretch (start, end); end < start when there is none."""
        return max(self.start, other.start), min(self.end, other.end)


@dataclass(frozen=True)
class Mark:
    """One storage event on a host: a metadata read, a release, a refusal or a fault."""

    host: str
    at: float
    event: str
    detail: str


@dataclass
class Leg:
    """One migration attempt; times are None where the event was not recorded."""

    number: int
    source: str
    destination: str
    started: float | None = None
    suspended: float | None = None
    stopped: float | None = None
    resumed: float | None = None
    completed: float | None = None
    cancelled: float | None = None
    reason: str = ""
    fault: str = ""

    @property
    def switched(self) -> float | None:
        """When a guest ran again: at the destination, or at the source after a cancel."""
        return self.resumed if self.resumed is not None else self.cancelled


@dataclass
class Timeline:
    """What the diagram shows. `hosts` in the order in which the guest met them."""

    start: float
    end: float
    hosts: list[str]
    legs: list[Leg]
    attached: list[Span] = field(default_factory=list)
    active: list[Span] = field(default_factory=list)
    overlaps: list[tuple[float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def build(events: tuple[dict[str, Any], ...], direction: str = "") -> Timeline | None:
    """The timeline of a case, or None when its events carry no usable time."""
    timed = [event for event in events if number(event.get("mono")) is not None]
    if len(timed) < 2:
        return None
    times = [float(event["mono"]) for event in timed]
    hosts = _hosts(timed, direction)
    line = Timeline(min(times), max(times), hosts, _legs(timed, hosts))
    line.attached = _attached(timed, line.end)
    line.active = _active(timed, line.end)
    line.overlaps = _overlaps(line.active)
    line.marks = [
        Mark(text(event.get("host")), float(event["mono"]), event["event"], _detail(event))
        for event in timed
        if event.get("event") in MARKED
    ]
    return line


def _hosts(events: list[dict[str, Any]], direction: str) -> list[str]:
    named = [name.strip() for name in direction.split("->")] if direction else []
    for wanted in ("source", "destination"):
        named += [text(event.get("host")) for event in events if event.get("side") == wanted]
    return list(dict.fromkeys(name for name in named if name and name != "controller"))


def _legs(events: list[dict[str, Any]], hosts: list[str]) -> list[Leg]:
    legs = dict[int, Leg]()
    for event in events:
        index = integer(event.get("leg")) or 1
        if index not in legs:
            source, destination = [*hosts, "source", "destination"][:2]
            legs[index] = Leg(index, source, destination)
        leg, at, kind = legs[index], float(event["mono"]), event.get("event")
        if event.get("side") in ("source", "destination") and event.get("host") in hosts:
            setattr(leg, event["side"], event["host"])
        if kind == "migrate-started":
            leg.started = at
        elif kind == "suspended":
            leg.suspended, leg.stopped = at, number(event.get("stop_mono"))
        elif kind == "resumed":
            leg.resumed, leg.completed = at, number(event.get("completed_mono"))
        elif kind == "cancelled":
            leg.cancelled, leg.reason = at, text(event.get("reason"))
        elif kind == "fault-injected":
            leg.fault = text(event.get("fault"), "fault injected")
    return [legs[index] for index in sorted(legs)]


def _attached(events: list[dict[str, Any]], end: float) -> list[Span]:
    spans, since = list[Span](), dict[tuple[str, int | None], float]()
    for event in events:
        key = (text(event.get("host")), integer(event.get("pid")))
        at = float(event["mono"])
        if event.get("event") == "attached":
            since.setdefault(key, at)
        elif event.get("event") == "detached" and key in since:
            spans.append(Span(key[0], since.pop(key), at))
    spans += [Span(host, at, end, lasting=True) for (host, _), at in since.items()]
    return sorted(spans, key=lambda span: span.start)


@dataclass
class _Read:
    host: str
    epoch: int | None
    start: float
    counts: bool


def _active(events: list[dict[str, Any]], end: float) -> list[Span]:
    """Activations: metadata reads on which a request was served, or that took the lease."""
    served = {
        (text(event.get("host")), integer(event.get("epoch")))
        for event in events
        if event.get("event") == "first-request"
    }
    spans = list[Span]()
    current = dict[tuple[str, int | None], _Read]()

    def finish(key: tuple[str, int | None], at: float, epoch: int | None, lasting: bool) -> None:
        read = current.pop(key, None)
        if read is not None and read.counts:
            spans.append(
                Span(read.host, read.start, max(at, read.start), lasting, (read.epoch, epoch))
            )

    for event in events:
        host, kind = text(event.get("host")), event.get("event")
        key = (host, integer(event.get("pid")))
        at, epoch = float(event["mono"]), integer(event.get("epoch"))
        if kind in READS:
            start = number(event.get("read_mono"))
            start = at if start is None else start
            finish(key, start, epoch, lasting=False)
            counts = (host, epoch) in served or event.get("lease") is True
            current[key] = _Read(host, epoch, start, counts)
        elif kind in RELEASES or kind == "detached":
            finish(key, at, epoch, lasting=False)
    for key in list(current):
        finish(key, end, None, lasting=True)
    return sorted(spans, key=lambda span: span.start)


def _overlaps(active: list[Span]) -> list[tuple[float, float]]:
    found = []
    for index, one in enumerate(active):
        for two in active[index + 1 :]:
            if one.host != two.host and _both_active(one, two):
                # Epochs say so even where converted clocks put the ends the other way round.
                start, end = sorted(one.during(two))
                found.append((start, end))
    return found


def _both_active(one: Span, two: Span) -> bool:
    (begin1, end1), (begin2, end2) = one.epochs, two.epochs
    if begin1 is None or begin2 is None:
        start, end = one.during(two)
        return start < end
    return (end1 is None or begin2 < end1) and (end2 is None or begin1 < end2)


def _detail(event: dict[str, Any]) -> str:
    parts = []
    for key in ("epoch", "ended", "mode", "op", "reason", "fault"):
        value = event.get(key)
        if value is not None and value != "":
            parts.append(f"{key} {value}")
    flags = ("implicit", "lease", "wrote_footer")
    parts += [key.replace("_", " ") for key in flags if event.get(key) is True]
    if event.get("truncated_to") is not None:
        parts.append(f"truncated to {event['truncated_to']}")
    return ", ".join(parts)
