"""Did the run exercise what it is to judge? Too little on either side of a switch proves nothing.

Also decides whether a run was refused: that is a claim about events, and it needs all of them.
"""

from dataclasses import dataclass, field

from vhdtool.oracle.events import Event, Events
from vhdtool.oracle.judge import Evidence
from vhdtool.oracle.legs import Attempt, gaps_in

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
    refused: str | None = None
    went_on_at: str = ""
    doubts: list[str] = field(default_factory=list)


def cover(evidence: Evidence) -> Coverage:
    """Never raises; with events missing, the doubts of the activation oracle say so already."""
    events, attempts = evidence.record.events, evidence.attempts
    coverage = Coverage()
    first = next((one.suspended for one in attempts if one.suspended), None)
    last = attempts[-1] if attempts else None
    again = last.runs_again if last else None
    if first is not None:
        coverage.allocated_before = _new_blocks(events, 0, first.seq)
    if again is not None:
        coverage.allocated_after = _new_blocks(events, again.seq)
        coverage.acked_after = sum(ack.mono > again.mono for ack in evidence.console.acks)
    case = evidence.record.case
    if not events.complete or case is None:
        return coverage
    coverage.doubts += gaps_in(attempts, case.legs)
    if case.exclusive:
        coverage.doubts += _untried(events, attempts)
    if last is None or again is None:
        return coverage
    if not last.moved:
        _refused(events, last, again, coverage)
    _enough(events, attempts, coverage)
    return coverage


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
    refusals = [event for event in events.named("refused") if event.leg == last.leg]
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
        for event in events.named("first-write", "allocated")
        if event.host == last.destination and event.leg == last.leg
    ]
    if wrote:
        coverage.doubts.append(
            f"{last.destination} refused, but it wrote (seq {wrote[0].seq}: {wrote[0].name})"
        )
