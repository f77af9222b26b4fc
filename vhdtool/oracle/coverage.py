"""Whether a case did enough to be judged. Too little on either side of a switch proves nothing.

Decides too whether the case was refused. That is a claim about events, and needs all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vhdtool.oracle.checks.in_flight import few_in_flight, requests_in_flight, untested_depth
from vhdtool.oracle.evidence.console import Ack
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.grammar import cite
from vhdtool.oracle.evidence.legs import Leg, incomplete_legs
from vhdtool.oracle.judge import Evidence

MINIMUM = 8
"""New blocks, and acknowledged writes, that each side of a switch must have."""


@dataclass
class Coverage:
    """Counts for verdict.json, and reasons why the case proves nothing.

    `refused`: the refusal in words, if the case ended with one; `continued_at`: the source's name.
    """

    acked_after: int = 0
    allocated_before: int = 0
    allocated_after: int = 0
    in_flight: list[int] = field(default_factory=list)
    refused: str | None = None
    continued_at: str = ""
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the case does not test. It changes no verdict."""


def cover(evidence: Evidence) -> Coverage:
    """Never raises. If events are missing, the activation oracle has that doubt already."""
    events, legs = evidence.record.events, evidence.legs
    coverage = Coverage()
    first = next((leg.suspended for leg in legs if leg.suspended), None)
    # A case that was refused before SUSPENDED has no switch: it counts up to the refusal.
    first = first or next(iter(events.named("refused")), None)
    last = legs[-1] if legs else None
    again = last.runs_again if last else None
    if first is not None:
        coverage.allocated_before = _new_blocks(events, 0, first.seq)
    if last is not None and again is not None:
        coverage.allocated_after = _new_blocks(events, again.seq)
        coverage.acked_after = _acked_after(evidence.console.acks, last, again)
    case = evidence.record.case
    if case is not None and case.deep_blocks:
        coverage.in_flight = requests_in_flight(evidence.console, legs)
    if not events.complete or case is None:
        return coverage
    if case.deep_blocks:
        coverage.doubts += untested_depth(evidence.console, legs)
        coverage.notes += few_in_flight(evidence.console, legs)
    coverage.doubts += incomplete_legs(legs, case.legs)
    if case.exclusive:
        coverage.doubts += _untried(events, legs)
    if last is None or again is None:
        return coverage
    if not last.moved:
        _refused(events, last, again, coverage)
    _enough(events, legs, coverage)
    return coverage


def _acked_after(acks: Sequence[Ack], last: Leg, again: Event) -> int:
    """Writes acknowledged after the last switch, on the console of the guest's host.

    Both times are the controller's.
    """
    return sum(ack.mono > again.mono and ack.host == last.guest_host for ack in acks)


def _untried(events: Events, legs: list[Leg]) -> list[str]:
    """Legs in which the destination never tried to read a LUN that only the source may reach."""
    tried = {
        (event.leg, event.host)
        for event in events.named("kept-out")
        for leg in legs
        if leg.number == event.leg and leg.suspended
        if leg.started.seq < event.seq < leg.suspended.seq
    }
    return [
        f"leg {leg.number}: it was not tested that the storage keeps {leg.destination} out"
        for leg in legs
        if (leg.number, leg.destination) not in tried
    ]


def _new_blocks(
    events: Events, after: int, before: int | None = None, host: str | None = None
) -> int:
    """Distinct blocks allocated between two seqs, by `host` or by any host."""
    return len(
        {
            event.integer("block")
            for event in events.named("allocated")
            if event.seq > after
            and (before is None or event.seq < before)
            and (host is None or event.host == host)
        }
    )


def _enough(events: Events, legs: list[Leg], coverage: Coverage) -> None:
    """Requires new blocks on both sides of every switch, and acknowledged writes after the last."""
    if coverage.acked_after < MINIMUM:
        coverage.doubts.append(
            f"only {coverage.acked_after} writes were acknowledged after the last switch, "
            f"fewer than {MINIMUM}"
        )
    since = 0
    for index, leg in enumerate(legs):
        again = leg.runs_again
        if again is None or leg.suspended is None:
            continue
        if not leg.moved and leg is not legs[-1]:
            # A cancelled leg is not a switch; allocations before it still count.
            continue
        following = next((one.suspended for one in legs[index + 1 :] if one.suspended), None)
        until = following.seq if following else None
        for side, count in (
            ("before", _new_blocks(events, since, leg.suspended.seq)),
            ("after", _new_blocks(events, again.seq, until)),
        ):
            if count < MINIMUM:
                coverage.doubts.append(
                    f"only {count} new blocks {side} the switch of leg {leg.number}, "
                    f"fewer than {MINIMUM}"
                )
        since = again.seq


def _refused(events: Events, last: Leg, again: Event, coverage: Coverage) -> None:
    """Requires a refusal, a cancel, and that the guest continued at the source alone."""
    refusals = [event for event in events.named("refused") if _in_time(event, last, again)]
    if not refusals:
        coverage.doubts.append(f"the migration was cancelled without a refusal: {again.reason}")
        return
    first = refusals[0]
    coverage.refused = f"{first.host} refused `{first.extra.get('op', '?')}` ({first.reason})"
    coverage.continued_at = last.source or "the source"
    if not _new_blocks(events, again.seq, host=last.source):
        coverage.doubts.append("the source allocated no new blocks after the cancel")
    wrote = [
        event
        for event in events.named("first-request", "first-write", "allocated")
        if event.host == last.destination and event.leg == last.number
    ]
    if wrote:
        text = f"{last.destination} refused, but it served a request: {cite(wrote[0])}"
        coverage.doubts.append(text)


def _in_time(refusal: Event, last: Leg, again: Event) -> bool:
    """Whether the destination refused, in the leg and before it was cancelled or resumed."""
    end = min(again.seq, last.resumed.seq if last.resumed else again.seq)
    in_time = last.started.seq < refusal.seq < end
    return in_time and refusal.host == last.destination and refusal.side == "destination"
