"""The bars and marks of the diagram, derived from the events of a case.

Activations are those of the oracle (vhdtool.oracle.checks.activation), so the drawing agrees with
the verdict. Epochs decide whether two of them overlap: they order the reads and releases of both
hosts without a clock. Times (seconds of the controller's clock) only position the overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vhdtool.oracle.checks.activation import Reading, check_activation
from vhdtool.oracle.evidence.events import READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.legs import Leg as RecordedLeg
from vhdtool.oracle.evidence.legs import legs_of

FAILURES = frozenset({"refused", "fenced", "fault-injected"})
MARKED = READS | RELEASES | FAILURES
_SHOWN_FIELDS = ("epoch", "ended", "mode", "op", "reason", "fault", "truncated_to")
_SHOWN_FLAGS = ("implicit", "lease", "wrote_footer")


@dataclass(frozen=True)
class Span:
    """An interval on one host; `open`: the record has no end of it."""

    host: str
    start: float
    end: float
    open: bool = False
    epochs: tuple[int, int | None] | None = None

    def intersection(self, other: "Span") -> tuple[float, float]:
        """The common interval (start, end); end < start when there is none."""
        return max(self.start, other.start), min(self.end, other.end)

    def overlaps(self, other: "Span") -> bool:
        """Whether both were active at once, by their epochs."""
        if self.epochs is None or other.epochs is None or self.host == other.host:
            return False
        (begin1, end1), (begin2, end2) = self.epochs, other.epochs
        return (end1 is None or begin2 < end1) and (end2 is None or begin1 < end2)


@dataclass(frozen=True)
class Mark:
    """A storage event on a host: a metadata read, a release, a refusal or a fault.

    `at` and `done` are its begin and end; they differ only for a metadata read.
    """

    host: str
    at: float
    done: float
    event: str
    detail: str


@dataclass(frozen=True)
class Leg:
    """A leg as it is drawn; a time is None where its event was not recorded."""

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
    def ran_again(self) -> float | None:
        """When the guest ran again: at the destination, or after a cancel at the source."""
        return self.resumed if self.moved else self.cancelled


@dataclass
class Timeline:
    """The contents of the diagram. `hosts` are in the order in which the guest ran on them."""

    start: float
    end: float
    hosts: list[str]
    legs: list[Leg]
    recorded: Sequence[RecordedLeg] = ()
    readings: Sequence[Reading] = ()
    attached: list[Span] = field(default_factory=list)
    active: list[Span] = field(default_factory=list)
    overlaps: list[tuple[float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def build_timeline(events: Events) -> Timeline | None:
    """Build the timeline of a case; None when there are too few events."""
    if len(events.items) < 2:
        return None
    times = [event.mono for event in events.items]
    end = max(times)
    recorded = legs_of(events)
    readings = check_activation(events, recorded, guard=False).readings
    timeline = Timeline(min(times), end, _hosts(events.items, recorded), _legs(events, recorded))
    timeline.recorded, timeline.readings = recorded, readings
    timeline.attached = _attached(events.items, end)
    timeline.active = sorted(
        (_active(one, end) for one in readings if one.active), key=lambda span: span.start
    )
    timeline.overlaps = [
        # Converted clocks may put the ends of an overlap in the wrong order.
        (min(one.intersection(two)), max(one.intersection(two)))
        for index, one in enumerate(timeline.active)
        for two in timeline.active[index + 1 :]
        if one.overlaps(two)
    ]
    timeline.marks = [
        Mark(event.host, read_time(event), event.mono, event.name, describe(event))
        for event in events.items
        if event.name in MARKED
    ]
    return timeline


def read_time(event: Event) -> float:
    """The time of an event; for a metadata read, its begin."""
    began = event.number("read_mono") if event.name in READS else None
    return event.mono if began is None else began


def describe(event: Event) -> str:
    """Format the fields that only this kind of event has."""
    parts = [
        f"{key.replace('_', ' ')} {event.extra[key]}"
        for key in _SHOWN_FIELDS
        if event.extra.get(key) not in (None, "")
    ]
    parts += [key.replace("_", " ") for key in _SHOWN_FLAGS if event.extra.get(key) is True]
    return ", ".join(parts)


def _hosts(events: Sequence[Event], recorded: Sequence[RecordedLeg]) -> list[str]:
    named = [name for leg in recorded for name in (leg.source, leg.destination)]
    for side in ("source", "destination"):
        named += [event.host for event in events if event.side == side]
    return list(dict.fromkeys(name for name in named if name))


def _legs(events: Events, recorded: Sequence[RecordedLeg]) -> list[Leg]:
    legs = []
    for leg in recorded:
        suspended, resumed, cancelled = leg.suspended, leg.resumed, leg.cancelled
        faults = [e for e in events.named("fault-injected") if e.leg == leg.number]
        legs.append(
            Leg(
                leg.number,
                leg.source,
                leg.destination,
                leg.started.mono,
                suspended=suspended.mono if suspended else None,
                stopped=suspended.number("stop_mono") if suspended else None,
                resumed=resumed.mono if resumed else None,
                completed=resumed.number("completed_mono") if resumed else None,
                cancelled=cancelled.mono if cancelled and not leg.moved else None,
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
    spans += [Span(event.host, event.mono, end, open=True) for event in since.values()]
    return sorted(spans, key=lambda span: span.start)


def _active(one: Reading, end: float) -> Span:
    start = read_time(one.event)
    if one.release is not None:
        finish = one.release.mono
    else:
        finish = end if one.next_read is None else read_time(one.next_read)
    open_ended = one.release is None and one.next_read is None
    return Span(one.event.host, start, max(start, finish), open_ended, (one.epoch, one.end))
