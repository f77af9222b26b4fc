"""Events of a case -> the bars of the mail's diagram: who had the disk attached, who was active.

Activations are the oracle's own (vhdtool.oracle.checks.activation), so that the picture never shows
another truth than the verdict. Whether two of them overlap is decided by epochs, which order
both hosts' reads and releases without a clock; times (seconds of the controller's clock) only
place the overlap on the axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vhdtool.oracle.checks.activation import Reading, judge_activation
from vhdtool.oracle.evidence.attempts import Attempt, attempts_of
from vhdtool.oracle.evidence.events import READS, RELEASES, Event, Events

TROUBLE = frozenset({"refused", "fenced", "fault-injected"})
MARKED = READS | RELEASES | TROUBLE
_TOLD = ("epoch", "ended", "mode", "op", "reason", "fault", "truncated_to")
_FLAGS = ("implicit", "lease", "wrote_footer")


@dataclass(frozen=True)
class Span:
    """A stretch of time on one host; `lasting`: it was not seen to end."""

    host: str
    start: float
    end: float
    lasting: bool = False
    epochs: tuple[int, int | None] | None = None

    def during(self, other: "Span") -> tuple[float, float]:
        """The common stretch (start, end); end < start when there is none."""
        return max(self.start, other.start), min(self.end, other.end)

    def meets(self, other: "Span") -> bool:
        """Whether both were active at once, by epochs alone."""
        if self.epochs is None or other.epochs is None or self.host == other.host:
            return False
        (begin1, end1), (begin2, end2) = self.epochs, other.epochs
        return (end1 is None or begin2 < end1) and (end2 is None or begin1 < end2)


@dataclass(frozen=True)
class Mark:
    """One storage event on a host: a metadata read, a release, a refusal or a fault.

    `at`: when it began, `done`: when it was over; the same but for a metadata read.
    """

    host: str
    at: float
    done: float
    event: str
    detail: str


@dataclass(frozen=True)
class Leg:
    """One migration attempt; times are None where the event was not recorded."""

    number: int
    source: str
    destination: str
    started: float
    suspended: float | None = None
    stopped: float | None = None
    resumed: float | None = None
    completed: float | None = None
    cancelled: float | None = None
    reason: str = ""
    fault: str = ""

    @property
    def moved(self) -> bool:
        return self.resumed is not None and self.cancelled is None

    @property
    def switched(self) -> float | None:
        """When a guest ran again: at the destination, or at the source after a cancel."""
        return self.resumed if self.moved else self.cancelled


@dataclass
class Timeline:
    """What the diagram shows. `hosts` in the order in which the guest met them."""

    start: float
    end: float
    hosts: list[str]
    legs: list[Leg]
    attempts: Sequence[Attempt] = ()
    readings: Sequence[Reading] = ()
    attached: list[Span] = field(default_factory=list)
    active: list[Span] = field(default_factory=list)
    overlaps: list[tuple[float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def build(events: Events) -> Timeline | None:
    """The timeline of a case, or None when its events are too few to draw."""
    if len(events.items) < 2:
        return None
    times = [event.mono for event in events.items]
    end = max(times)
    attempts = attempts_of(events)
    readings = judge_activation(events, attempts, guard=False).readings
    line = Timeline(min(times), end, _hosts(events.items, attempts), _legs(events, attempts))
    line.attempts, line.readings = attempts, readings
    line.attached = _attached(events.items, end)
    line.active = sorted(
        (_active(one, end) for one in readings if one.active), key=lambda span: span.start
    )
    line.overlaps = [
        # Epochs say so even where converted clocks put the ends the other way round.
        (min(one.during(two)), max(one.during(two)))
        for index, one in enumerate(line.active)
        for two in line.active[index + 1 :]
        if one.meets(two)
    ]
    line.marks = [
        Mark(event.host, read_time(event), event.mono, event.name, describe(event))
        for event in events.items
        if event.name in MARKED
    ]
    return line


def read_time(event: Event) -> float:
    """When it happened: for a metadata read, when the reading began."""
    began = event.number("read_mono") if event.name in READS else None
    return event.mono if began is None else began


def describe(event: Event) -> str:
    """The event's own fields in words."""
    parts = [
        f"{key.replace('_', ' ')} {event.extra[key]}"
        for key in _TOLD
        if event.extra.get(key) not in (None, "")
    ]
    parts += [key.replace("_", " ") for key in _FLAGS if event.extra.get(key) is True]
    return ", ".join(parts)


def _hosts(events: Sequence[Event], attempts: Sequence[Attempt]) -> list[str]:
    named = [name for attempt in attempts for name in (attempt.source, attempt.destination)]
    for side in ("source", "destination"):
        named += [event.host for event in events if event.side == side]
    return list(dict.fromkeys(name for name in named if name))


def _legs(events: Events, attempts: Sequence[Attempt]) -> list[Leg]:
    legs = []
    for attempt in attempts:
        suspended, resumed, cancelled = attempt.suspended, attempt.resumed, attempt.cancelled
        faults = [e for e in events.named("fault-injected") if e.leg == attempt.leg]
        legs.append(
            Leg(
                attempt.leg,
                attempt.source,
                attempt.destination,
                attempt.started.mono,
                suspended=suspended.mono if suspended else None,
                stopped=suspended.number("stop_mono") if suspended else None,
                resumed=resumed.mono if resumed else None,
                completed=resumed.number("completed_mono") if resumed else None,
                cancelled=cancelled.mono if cancelled and not attempt.moved else None,
                reason=str(cancelled.extra.get("reason", "")) if cancelled else "",
                fault=str(faults[0].extra.get("fault", "injected")) if faults else "",
            )
        )
    return legs


def _attached(events: Sequence[Event], end: float) -> list[Span]:
    spans, since = list[Span](), dict[str, Event]()
    for event in events:
        if event.name == "attached":
            since.setdefault(event.who, event)
        elif event.name == "detached" and event.who in since:
            spans.append(Span(event.host, since.pop(event.who).mono, event.mono))
    spans += [Span(event.host, event.mono, end, lasting=True) for event in since.values()]
    return sorted(spans, key=lambda span: span.start)


def _active(one: Reading, end: float) -> Span:
    start = read_time(one.event)
    if one.release is not None:
        finish = one.release.mono
    else:
        finish = end if one.next_read is None else read_time(one.next_read)
    lasting = one.release is None and one.next_read is None
    return Span(one.event.host, start, max(start, finish), lasting, (one.epoch, one.end))
