"""How long the guest was silent, in all and by phase, in milliseconds.

Total comes from the consoles' time stamps, the phases from events; they may overlap and need not
add up. Of several migrations the one with the longest silence is reported.
"""

from collections.abc import Sequence

from vhdtool.oracle.activation import Reading
from vhdtool.oracle.console import Ack
from vhdtool.oracle.events import Event
from vhdtool.oracle.legs import Attempt

PHASES = ("quiesce", "deactivate", "transfer", "activate", "resume")


def nothing() -> dict[str, float]:
    """The entry of a case in which no time is known."""
    return dict.fromkeys(("total", *PHASES), 0.0)


def blackout(
    attempts: Sequence[Attempt], acks: Sequence[Ack], readings: Sequence[Reading]
) -> dict[str, float]:
    """The entry `blackout_ms`; zeros where a time is not known."""
    moved = [attempt for attempt in attempts if attempt.moved]
    entries = [_of(attempt, acks, readings) for attempt in moved or attempts]
    return max(entries, key=lambda entry: entry["total"], default=nothing())


def _of(attempt: Attempt, acks: Sequence[Ack], readings: Sequence[Reading]) -> dict[str, float]:
    suspended, resumed = attempt.suspended, attempt.runs_again
    if suspended is None or resumed is None:
        return nothing()
    last, first = _silence(attempt, acks, suspended, resumed)
    stop = suspended.number("stop_mono") or suspended.mono
    release = _release(attempt, readings, suspended, resumed)
    read = _read(attempt, readings, suspended, resumed)
    released = release.mono if release else suspended.mono
    completed = resumed.number("completed_mono")
    times = {
        "total": (last, first),
        "quiesce": (stop, suspended.mono),
        "deactivate": (suspended.mono, released),
        "transfer": (released, completed),
        "activate": (released if read and read.mono >= released else suspended.mono,
                     read.mono if read else None),
        "resume": (resumed.mono, first),
    }  # fmt: skip
    return {
        name: round(max(end - start, 0) * 1000, 3) if start is not None and end is not None else 0.0
        for name, (start, end) in times.items()
    }


def _silence(
    attempt: Attempt, acks: Sequence[Ack], suspended: Event, resumed: Event
) -> tuple[float | None, float | None]:
    """Arrival of the last acknowledgement before the switch and of the first after it.

    A guest that moved is heard on the other host's console, so hosts tell before from after even
    where an acknowledgement overtakes the controller's own event.
    """
    if attempt.moved:
        since = attempt.started.mono
        there = [
            place
            for place, ack in enumerate(acks)
            if ack.host == attempt.destination and ack.mono >= since
        ]
        if not there:
            return None, None
        before = acks[there[0] - 1].mono if there[0] else None
        return before, acks[there[0]].mono
    last = max((ack.mono for ack in acks if ack.mono <= suspended.mono), default=None)
    first = min((ack.mono for ack in acks if ack.mono > suspended.mono), default=None)
    return last, first


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
