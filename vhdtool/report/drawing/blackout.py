"""The blackout of each leg on the time axis: last write, phases, first write after it.

All times are those of the oracle (vhdtool.oracle.checks.timing), so the drawing agrees with the
figures of the verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.oracle.checks.timing import Blackout as Measured
from vhdtool.oracle.checks.timing import blackouts
from vhdtool.oracle.evidence.console import Ack
from vhdtool.report.drawing.timeline import Leg, Timeline


@dataclass(frozen=True)
class Phase:
    """A phase of a blackout, in seconds of the controller's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Blackout:
    """The blackout of a leg. `start` is its last acknowledged write, or else the guest's stop."""

    leg: Leg
    last_ack: float | None
    first_ack: float | None
    start: float
    end: float
    phases: tuple[Phase, ...]

    def durations_ms(self) -> dict[str, float]:
        """Durations of the whole and of each phase, as verdict.json has them."""
        durations = {phase.name: phase.end - phase.start for phase in self.phases}
        if self.last_ack is not None and self.first_ack is not None:
            durations["total"] = self.first_ack - self.last_ack
        return {name: round(seconds * 1000, 3) for name, seconds in durations.items()}


def find_blackouts(timeline: Timeline, acks: Sequence[Ack]) -> list[Blackout]:
    """The blackouts of the legs in which the guest was suspended."""
    measured = {id(one.leg): one for one in blackouts(timeline.recorded, acks, timeline.readings)}
    found = []
    for recorded, leg in zip(timeline.recorded, timeline.legs, strict=True):
        if leg.suspended is not None:
            found.append(_blackout(leg, leg.suspended, measured.get(id(recorded))))
    return found


def _blackout(leg: Leg, suspended: float, measured: Measured | None) -> Blackout:
    last = None if measured is None else measured.last
    first = None if measured is None else measured.first
    halted = suspended if leg.stopped is None else leg.stopped
    start = halted if last is None else last
    end = next(at for at in (first, leg.ran_again, suspended) if at is not None)
    phases = {} if measured is None else measured.phases
    drawn = tuple(Phase(name, *span) for name, span in phases.items())
    return Blackout(leg, last, first, start, max(end, start), drawn)
