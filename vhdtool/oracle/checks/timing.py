"""The blackout: how long the guest got no reply from its disk, in total and by phase.

The total comes from the times of the consoles, the phases from the events. Phases may overlap and
need not add up. Of several legs the longest blackout is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.oracle.checks.activation import Reading
from vhdtool.oracle.evidence.console import Ack
from vhdtool.oracle.evidence.events import Event
from vhdtool.oracle.evidence.legs import Leg

PHASES = ("quiesce", "deactivate", "transfer", "activate", "resume")


def no_blackout() -> dict[str, float]:
    """The entry `blackout_ms` of a case whose times are unknown."""
    return dict.fromkeys(("total", *PHASES), 0.0)


@dataclass(frozen=True)
class Blackout:
    """The blackout of one leg; times are seconds of the controller's clock.

    From the last acknowledgement before the switch to the first after it; None if unknown.
    """

    leg: Leg
    last: float | None
    first: float | None
    phases: dict[str, tuple[float, float]]

    @property
    def total(self) -> float:
        """Seconds; 0 if an end is unknown."""
        return 0.0 if self.last is None or self.first is None else self.first - self.last


def longest_blackout(
    legs: Sequence[Leg], acks: Sequence[Ack], readings: Sequence[Reading]
) -> dict[str, float]:
    """The entry `blackout_ms`, in milliseconds; zero for an unknown time."""
    found = blackouts(legs, acks, readings)
    moved = [one for one in found if one.leg.moved]
    longest = max(moved or found, key=lambda one: one.total, default=None)
    if longest is None:
        return no_blackout()
    spans = {name: end - start for name, (start, end) in longest.phases.items()}
    spans["total"] = longest.total
    return {name: round(max(spans.get(name, 0.0), 0.0) * 1000, 3) for name in no_blackout()}


def blackouts(
    legs: Sequence[Leg], acks: Sequence[Ack], readings: Sequence[Reading]
) -> list[Blackout]:
    """One for each leg in which the guest was stopped and ran again."""
    return [
        _blackout(leg, acks, readings, leg.suspended, leg.runs_again)
        for leg in legs
        if leg.suspended is not None and leg.runs_again is not None
    ]


def _blackout(
    leg: Leg,
    acks: Sequence[Ack],
    readings: Sequence[Reading],
    suspended: Event,
    resumed: Event,
) -> Blackout:
    last, first = _acks_around(leg, acks, readings, suspended, resumed)
    release = _release(leg, readings, suspended, resumed)
    released = release.mono if release else suspended.mono
    times = {
        "quiesce": (suspended.number("stop_mono") or suspended.mono, suspended.mono),
        "deactivate": _operation(release, suspended.mono),
        "transfer": (released, resumed.number("completed_mono")),
        "activate": _operation(_read(leg, readings, suspended, resumed), released),
        "resume": (resumed.mono, first),
    }
    known = {name: (start, end) for name, (start, end) in times.items() if end is not None}
    return Blackout(leg, last, first, {n: (a, b) for n, (a, b) in known.items() if a <= b})


def _operation(event: Event | None, before: float) -> tuple[float, float | None]:
    """Begin and end of a shim's operation, by its own events, so that transport is not counted."""
    if event is None:
        return before, None
    began = event.number("began_mono")
    return (min(before, event.mono) if began is None else began), event.mono


def _acks_around(
    leg: Leg,
    acks: Sequence[Ack],
    readings: Sequence[Reading],
    suspended: Event,
    resumed: Event,
) -> tuple[float | None, float | None]:
    """Times of the last acknowledgement before the switch and of the first after it.

    A guest that moved may acknowledge earlier writes on the destination's console. An
    acknowledgement counts as new only after the first write request to the destination's shim.
    """
    since = suspended.mono
    if leg.moved:
        written = _first_write(leg, readings)
        since = resumed.mono if written is None else written
    earlier = [ack.mono for ack in acks if ack.host == leg.source and ack.mono <= resumed.mono]
    last = max((at for at in earlier if leg.moved or at <= suspended.mono), default=None)
    after = (ack.mono for ack in acks if ack.host == leg.guest_host and ack.mono > since)
    return last, min(after, default=None)


def _first_write(leg: Leg, readings: Sequence[Reading]) -> float | None:
    """Time of the first write request to the destination in this leg; a probe only reads."""
    times = [
        one.first_write.mono
        for one in readings
        if one.first_write is not None
        and one.event.host == leg.destination
        and one.first_write.mono >= leg.started.mono
    ]
    return min(times, default=None)


def _release(
    leg: Leg, readings: Sequence[Reading], suspended: Event, resumed: Event
) -> Event | None:
    """The source's release between SUSPENDED and RESUME; a later close does not count."""
    releases = [
        one.release
        for one in readings
        if one.release is not None
        and one.release.host == leg.source
        and suspended.mono <= one.release.mono <= resumed.mono
    ]
    return max(releases, key=lambda event: event.mono, default=None)


def _read(leg: Leg, readings: Sequence[Reading], suspended: Event, resumed: Event) -> Event | None:
    """The destination's last metadata read between SUSPENDED and RESUME."""
    reads = [
        one.event
        for one in readings
        if one.event.host == leg.destination and suspended.mono <= one.event.mono <= resumed.mono
    ]
    return max(reads, key=lambda event: event.mono, default=None)
