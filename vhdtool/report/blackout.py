"""The blackout of each leg placed on the time axis: last acknowledgement, phases, first after.

The figures that are reported come from verdict.json; this module only finds where to draw them,
by the same definitions (vhdtool.oracle.timing).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vhdtool.oracle.console import Ack
from vhdtool.oracle.events import READS, RELEASES
from vhdtool.report.timeline import Leg, Timeline


@dataclass(frozen=True)
class Phase:
    """A phase of the blackout, in seconds of the controller's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Blackout:
    """A leg's blackout. `start` is the last acknowledgement, or the stop where none is known."""

    leg: Leg
    last_ack: float | None
    first_ack: float | None
    start: float
    end: float
    phases: tuple[Phase, ...]


def blackouts(line: Timeline, acks: Sequence[Ack]) -> list[Blackout]:
    """One Blackout for each leg in which the guest was suspended."""
    found = []
    for leg in line.legs:
        if leg.suspended is None:
            continue
        last, first = _silence(leg, acks, leg.suspended)
        halted = leg.suspended if leg.stopped is None else leg.stopped
        start = halted if last is None else last
        known = [at for at in (first, leg.switched, leg.suspended) if at is not None]
        phases = _phases(line, leg, leg.suspended, first)
        found.append(Blackout(leg, last, first, start, max(known[0], start), phases))
    return found


def measured(switch: Blackout, total_ms: float | None) -> Blackout:
    """The leg that the verdict measured, ending where the verdict says that it ended."""
    if total_ms is None or switch.last_ack is None:
        return switch
    end = switch.last_ack + total_ms / 1000
    phases = [phase for phase in switch.phases if phase.name != "resume"]
    if switch.leg.switched is not None and switch.leg.switched <= end:
        phases.append(Phase("resume", switch.leg.switched, end))
    return replace(switch, first_ack=end, end=end, phases=tuple(phases))


def _silence(leg: Leg, acks: Sequence[Ack], suspended: float) -> tuple[float | None, float | None]:
    """The last acknowledgement before the switch and the first after it.

    A guest that moved is heard on the other host's console, which tells before from after even
    where an acknowledgement overtakes the controller's own event.
    """
    if not leg.moved:
        last = max((ack.mono for ack in acks if ack.mono <= suspended), default=None)
        return last, min((ack.mono for ack in acks if ack.mono > suspended), default=None)
    for place, ack in enumerate(acks):
        if ack.host == leg.destination and ack.mono >= leg.started:
            return (acks[place - 1].mono if place else None), ack.mono
    return None, None


def _phases(line: Timeline, leg: Leg, suspended: float, first: float | None) -> tuple[Phase, ...]:
    upto = line.end if leg.switched is None else leg.switched
    inside = [mark for mark in line.marks if suspended <= mark.done <= upto]
    closed = [m.done for m in inside if m.host == leg.source and m.event in RELEASES]
    reads = [m.done for m in inside if m.host == leg.destination and m.event in READS]
    released = max(closed, default=suspended)
    read = max(reads, default=None)
    starts_after = released if read is not None and read >= released else suspended
    ends: list[tuple[str, float | None, float | None]] = [
        ("quiesce", leg.stopped, suspended),
        ("deactivate", suspended, released if closed else None),
        ("transfer", released, leg.completed),
        ("activate", starts_after, read),
        ("resume", leg.switched, first),
    ]
    return tuple(
        Phase(name, start, end)
        for name, start, end in ends
        if start is not None and end is not None and end >= start
    )
