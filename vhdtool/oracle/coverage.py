"""Did the run exercise what it is to judge? Too little on either side of a switch proves nothing.

Also decides whether a run was refused: that is a claim about events, and it needs all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vhdtool.oracle.checks.flight import few, in_flight, shallow
from vhdtool.oracle.evidence.attempts import Attempt, gaps_in
from vhdtool.oracle.evidence.console import Ack
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.grammar import line
from vhdtool.oracle.judge import Evidence

MINIMUM = 8
"""New blocks, and acknowledged writes, that each side of a switch must have."""


@dataclass
class Coverage:
    """Counts for verdict.json, and why the run may prove nothing.

    `refused`: the refusal in words, when the case ended in one; `went_on_at` the source's name.
    """

    acked_after: int = 0
    allocated_before: int = 0
    allocated_after: int = 0
    in_flight: list[int] = field(default_factory=list)
    refused: str | None = None
    went_on_at: str = ""
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the case does not say, though it proves the rest."""


def cover(evidence: Evidence) -> Coverage:
    """Never raises; with events missing, the doubts of the activation oracle say so already."""
    events, attempts = evidence.record.events, evidence.attempts
    coverage = Coverage()
    first = next((one.suspended for one in attempts if one.suspended), None)
    # A case that was refused before SUSPENDED has no switch: it counts up to the refusal.
    first = first or next(iter(events.named("refused")), None)
    last = attempts[-1] if attempts else None
    again = last.runs_again if last else None
    if first is not None:
        coverage.allocated_before = _new_blocks(events, 0, first.seq)
    if again is not None:
        coverage.allocated_after = _new_blocks(events, again.seq)
        coverage.acked_after = _acked_after(evidence.console.acks, last, again)
    case = evidence.record.case
    if case is not None and case.deep_blocks:
        coverage.in_flight = in_flight(evidence.console, attempts)
    if not events.complete or case is None:
        return coverage
    if case.deep_blocks:
        coverage.doubts += shallow(evidence.console, attempts)
        coverage.notes += few(evidence.console, attempts)
    coverage.doubts += gaps_in(attempts, case.legs)
    if case.exclusive:
        coverage.doubts += _untried(events, attempts)
    if last is None or again is None:
        return coverage
    if not last.moved:
        _refused(events, last, again, coverage)
    _enough(events, attempts, coverage)
    return coverage


def _acked_after(acks: Sequence[Ack], last: Attempt | None, again: Event) -> int:
    """Acknowledged after the last switch, on the console of the host on which the guest runs.

    Both times are the controller's.
    """
    here = None if last is None else last.destination if last.moved else last.source
    return sum(ack.mono > again.mono and ack.host == here for ack in acks)


def _untried(events: Events, attempts: list[Attempt]) -> list[str]:
    """Legs in which nobody tried to read a LUN that the source alone was to reach."""
    tried = {
        (event.leg, event.host)
        for event in events.named("kept-out")
        for one in attempts
        if one.leg == event.leg and one.suspended
        if one.started.seq < event.seq < one.suspended.seq
    }
    return [
        f"leg {one.leg}: nobody tried whether the storage keeps {one.destination} out"
        for one in attempts
        if (one.leg, one.destination) not in tried
    ]


def _new_blocks(
    events: Events, after: int, before: int | None = None, host: str | None = None
) -> int:
    """Distinct blocks allocated between two seqs, by one host or any."""
    return len(
        {
            event.integer("block")
            for event in events.named("allocated")
            if event.seq > after
            and (before is None or event.seq < before)
            and (host is None or event.host == host)
        }
    )


def _enough(events: Events, attempts: list[Attempt], coverage: Coverage) -> None:
    """New blocks on both sides of every switch, and acknowledged writes after the last."""
    if coverage.acked_after < MINIMUM:
        coverage.doubts.append(
            f"only {coverage.acked_after} writes were acknowledged after the last switch, "
            f"fewer than {MINIMUM}"
        )
    since = 0
    for place, attempt in enumerate(attempts):
        again = attempt.runs_again
        if again is None or attempt.suspended is None:
            continue
        if not attempt.moved and attempt is not attempts[-1]:
            # A failed attempt is no switch; what was allocated before it still counts.
            continue
        following = next((one.suspended for one in attempts[place + 1 :] if one.suspended), None)
        until = following.seq if following else None
        for side, count in (
            ("before", _new_blocks(events, since, attempt.suspended.seq)),
            ("after", _new_blocks(events, again.seq, until)),
        ):
            if count < MINIMUM:
                coverage.doubts.append(
                    f"only {count} new blocks {side} the switch of leg {attempt.leg}, "
                    f"fewer than {MINIMUM}"
                )
        since = again.seq


def _refused(events: Events, last: Attempt, again: Event, coverage: Coverage) -> None:
    """A refusal that kept the guest whole: refused, cancelled, went on at the source alone."""
    refusals = [event for event in events.named("refused") if _counts(event, last, again)]
    if not refusals:
        reason = str(again.extra.get("reason", "no reason given"))[:200]
        coverage.doubts.append(f"the migration was cancelled without a refusal: {reason}")
        return
    first = refusals[0]
    reason = " ".join(str(first.extra.get("reason", "no reason given")).split())[:200]
    coverage.refused = f"{first.host} refused `{first.extra.get('op', '?')}` ({reason})"
    coverage.went_on_at = last.source or "the source"
    if not _new_blocks(events, again.seq, host=last.source):
        coverage.doubts.append("the source allocated no new block after the cancel")
    wrote = [
        event
        for event in events.named("first-request", "first-write", "allocated")
        if event.host == last.destination and event.leg == last.leg
    ]
    if wrote:
        coverage.doubts.append(f"{last.destination} refused, but it served: {line(wrote[0])}")


def _counts(refusal: Event, last: Attempt, again: Event) -> bool:
    """The destination refused, after the leg began and before it was cancelled or resumed."""
    end = min(again.seq, last.resumed.seq if last.resumed else again.seq)
    in_time = last.started.seq < refusal.seq < end
    return in_time and refusal.host == last.destination and refusal.side == "destination"
