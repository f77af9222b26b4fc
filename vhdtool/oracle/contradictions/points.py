"""Snapshots against events: each point is taken right after the event that it is named for.

The controller takes a snapshot between two operations, so its `seq` lies behind the event that
the point waits for and before the next event that an operation leaves behind.
"""

from collections.abc import Iterator, Sequence

from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.events import READS, Event, Events
from vhdtool.oracle.evidence.grammar import is_step, line
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, doubt


def points(
    snapshots: Sequence[Snapshot], events: Events, attempts: Sequence[Attempt]
) -> Iterator[Finding]:
    """Doubts about snapshots out of their place, and about points that are missing."""
    if not events.complete:
        return
    due = dict(_due(events, attempts))
    have = {snapshot.name: snapshot for snapshot in snapshots}
    for name, event in due.items():
        if name not in have:
            text = f"metadata/{name}.json: missing, although {line(event)} made it due"
            yield doubt("point-missing", text)
    for name, snapshot in have.items():
        first = due.get(name)
        if first is None:
            yield doubt("point-place", f"metadata/{name}.json: no event made this point due")
            continue
        limit = _next_step(events, first)
        if snapshot.seq < first.seq or (limit is not None and snapshot.seq >= limit.seq):
            until = f" and before {line(limit)}" if limit else ""
            text = f"metadata/{name}.json: taken at seq {snapshot.seq}; it belongs after "
            yield doubt("point-place", f"{text}{line(first)}{until}")


def _next_step(events: Events, after: Event) -> Event | None:
    """The next event of an operation; what the same process says of the same one is no other."""
    return next((event for event in events.items if event.seq > after.seq and is_step(event)), None)


def _due(events: Events, attempts: Sequence[Attempt]) -> Iterator[tuple[str, Event]]:
    """(name of a point, the event after which it is taken) of every point of a record."""
    for attempt in attempts:
        end = attempt.outcome
        inside = [
            event
            for event in events.items
            if event.seq > attempt.started.seq and (end is None or event.seq < end.seq)
        ]
        for point, event in _of_leg(attempt, inside):
            yield f"{attempt.leg}-{point}", event
    closing = [event for event in events.items if event.name == "detached"]
    if closing and attempts:
        yield f"{attempts[-1].leg}-all-closed", closing[-1]


def _of_leg(attempt: Attempt, inside: list[Event]) -> Iterator[tuple[str, Event]]:
    if attempt.suspended is not None:
        yield "source-quiesced", attempt.suspended
    closed = [e for e in inside if e.name == "deactivated" and e.host == attempt.source]
    if closed:
        yield "source-closed", closed[-1]
    read = [e for e in inside if e.name in READS and e.host == attempt.destination and is_step(e)]
    if read:
        yield "destination-opened", read[-1]
    if attempt.resumed is not None:
        written = (
            e
            for e in inside
            if e.seq > attempt.resumed.seq
            and e.name == "allocated"
            and e.host == attempt.destination
        )
        yield "destination-wrote", next(written, attempt.resumed)
