"""How long the guest was silent, in all and by phase, in milliseconds.

Total comes from the consoles' time stamps, the phases from events; they may overlap and need not
add up. Of several migrations the one with the longest silence is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.oracle.checks.activation import Reading
from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.console import Ack
from vhdtool.oracle.evidence.events import Event

PHASES = ("quiesce", "deactivate", "transfer", "activate", "resume")


def nothing() -> dict[str, float]:
    """The entry of a case in which no time is known."""
    return dict.fromkeys(("total", *PHASES), 0.0)


@dataclass(frozen=True)
class Silence:
    """The blackout of one attempt to migrate; times are seconds of the controller's clock.

    From the guest's last acknowledgement before to the first after; None where none is known.
    """

    attempt: Attempt
    last: float | None
    first: float | None
    phases: dict[str, tuple[float, float]]

    @property
    def total(self) -> float:
        """Seconds; 0 where an end is not known."""
        return 0.0 if self.last is None or self.first is None else self.first - self.last


def blackout(
    attempts: Sequence[Attempt], acks: Sequence[Ack], readings: Sequence[Reading]
) -> dict[str, float]:
    """The entry `blackout_ms`; zeros where a time is not known."""
    found = silences(attempts, acks, readings)
    moved = [one for one in found if one.attempt.moved]
    longest = max(moved or found, key=lambda one: one.total, default=None)
    if longest is None:
        return nothing()
    spans = {name: end - start for name, (start, end) in longest.phases.items()}
    spans["total"] = longest.total
    return {name: round(max(spans.get(name, 0.0), 0.0) * 1000, 3) for name in nothing()}


def silences(
    attempts: Sequence[Attempt], acks: Sequence[Ack], readings: Sequence[Reading]
) -> list[Silence]:
    """One for each attempt in which the guest stood still and ran again."""
    return [
        _of(attempt, acks, readings, attempt.suspended, attempt.runs_again)
        for attempt in attempts
        if attempt.suspended is not None and attempt.runs_again is not None
    ]


def _of(
    attempt: Attempt,
    acks: Sequence[Ack],
    readings: Sequence[Reading],
    suspended: Event,
    resumed: Event,
) -> Silence:
    last, first = _acks_around(attempt, acks, readings, suspended, resumed)
    release = _release(attempt, readings, suspended, resumed)
    released = release.mono if release else suspended.mono
    times = {
        "quiesce": (suspended.number("stop_mono") or suspended.mono, suspended.mono),
        "deactivate": _operation(release, suspended.mono),
        "transfer": (released, resumed.number("completed_mono")),
        "activate": _operation(_read(attempt, readings, suspended, resumed), released),
        "resume": (resumed.mono, first),
    }
    known = {name: (start, end) for name, (start, end) in times.items() if end is not None}
    return Silence(attempt, last, first, {n: (a, b) for n, (a, b) in known.items() if a <= b})


def _operation(event: Event | None, before: float) -> tuple[float, float | None]:
    """Begin and end of what a shim did; shims say both, so that the way there is not counted."""
    if event is None:
        return before, None
    began = event.number("began_mono")
    return (min(before, event.mono) if began is None else began), event.mono


def _acks_around(
    attempt: Attempt,
    acks: Sequence[Ack],
    readings: Sequence[Reading],
    suspended: Event,
    resumed: Event,
) -> tuple[float | None, float | None]:
    """Arrival of the last acknowledgement before the switch and of the first after it.

    A guest that moved may say on the other host's console what it had finished before: only an
    acknowledgement after the first write that the destination's shim was asked for is a new one.
    """
    place = suspended.mono
    if attempt.moved:
        asked = _first_write(attempt, readings)
        place = resumed.mono if asked is None else asked
    there = attempt.destination if attempt.moved else attempt.source
    heard = [ack.mono for ack in acks if ack.host == attempt.source and ack.mono <= resumed.mono]
    last = max((at for at in heard if attempt.moved or at <= suspended.mono), default=None)
    after = (ack.mono for ack in acks if ack.host == there and ack.mono > place)
    return last, min(after, default=None)


def _first_write(attempt: Attempt, readings: Sequence[Reading]) -> float | None:
    """When the destination was first asked to write in this attempt; a probe only reads."""
    asked = [
        one.first_write.mono
        for one in readings
        if one.first_write is not None
        and one.event.host == attempt.destination
        and one.first_write.mono >= attempt.started.mono
    ]
    return min(asked, default=None)


def _release(
    attempt: Attempt, readings: Sequence[Reading], suspended: Event, resumed: Event
) -> Event | None:
    """The source's release inside the blackout; a late close is none."""
    releases = [
        one.release
        for one in readings
        if one.release is not None
        and one.release.host == attempt.source
        and suspended.mono <= one.release.mono <= resumed.mono
    ]
    return max(releases, key=lambda event: event.mono, default=None)


def _read(
    attempt: Attempt, readings: Sequence[Reading], suspended: Event, resumed: Event
) -> Event | None:
    """The destination's last metadata read inside the blackout."""
    reads = [
        one.event
        for one in readings
        if one.event.host == attempt.destination
        and suspended.mono <= one.event.mono <= resumed.mono
    ]
    return max(reads, key=lambda event: event.mono, default=None)
