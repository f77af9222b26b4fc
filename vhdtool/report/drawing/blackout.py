"""The blackout of each leg placed on the time axis: last acknowledgement, phases, first after.

All times are the oracle's own (vhdtool.oracle.checks.timing), so that the drawing and the figures
of the verdict cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.oracle.checks.timing import Silence, silences
from vhdtool.oracle.evidence.console import Ack
from vhdtool.report.drawing.timeline import Leg, Timeline


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

    def figures(self) -> dict[str, float]:
        """Milliseconds of the whole and of each phase, as verdict.json has them."""
        known = {phase.name: phase.end - phase.start for phase in self.phases}
        if self.last_ack is not None and self.first_ack is not None:
            known["total"] = self.first_ack - self.last_ack
        return {name: round(seconds * 1000, 3) for name, seconds in known.items()}


def blackouts(line: Timeline, acks: Sequence[Ack]) -> list[Blackout]:
    """One Blackout for each leg in which the guest was suspended."""
    measured = {id(one.attempt): one for one in silences(line.attempts, acks, line.readings)}
    found = []
    for attempt, leg in zip(line.attempts, line.legs, strict=True):
        if leg.suspended is not None:
            found.append(_blackout(leg, leg.suspended, measured.get(id(attempt))))
    return found


def _blackout(leg: Leg, suspended: float, silence: Silence | None) -> Blackout:
    last = None if silence is None else silence.last
    first = None if silence is None else silence.first
    halted = suspended if leg.stopped is None else leg.stopped
    start = halted if last is None else last
    end = next(at for at in (first, leg.switched, suspended) if at is not None)
    phases = {} if silence is None else silence.phases
    drawn = tuple(Phase(name, *span) for name, span in phases.items())
    return Blackout(leg, last, first, start, max(end, start), drawn)
