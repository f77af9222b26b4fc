"""The snapshots, against the events: each is taken right after the event that makes it due.

The controller takes a snapshot between two operations. So its `seq` is at or after the event that
makes its point due, and before the next event of an operation.
"""

from collections.abc import Iterator, Sequence

from vhdtool.oracle.evidence.events import READS, Event, Events
from vhdtool.oracle.evidence.grammar import cite, is_operation
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, doubt


def check_snapshot_points(
    snapshots: Sequence[Snapshot], events: Events, legs: Sequence[Leg]
) -> Iterator[Finding]:
    """Doubts about snapshots taken at another time, and about points without a snapshot."""
    if not events.complete:
        return
    due = dict(_due(events, legs))
    have = {snapshot.name: snapshot for snapshot in snapshots}
    for name, event in due.items():
        if name not in have:
            yield doubt("point-missing", f"metadata/{name}.json: missing, due after {cite(event)}")
    for name, snapshot in have.items():
        first = due.get(name)
        if first is None:
            yield doubt("point-place", f"metadata/{name}.json: no event makes this point due")
            continue
        limit = _next_operation(events, first)
        if snapshot.seq < first.seq or (limit is not None and snapshot.seq >= limit.seq):
            until = f" and before {cite(limit)}" if limit else ""
            text = f"metadata/{name}.json: taken at seq {snapshot.seq}, due after "
            yield doubt("point-place", f"{text}{cite(first)}{until}")


def _next_operation(events: Events, after: Event) -> Event | None:
    return next((e for e in events.items if e.seq > after.seq and is_operation(e)), None)


def _due(events: Events, legs: Sequence[Leg]) -> Iterator[tuple[str, Event]]:
    """(leg and point, the event after which it is due), of every point of a record."""
    for leg in legs:
        end = leg.outcome
        inside = [
            event
            for event in events.items
            if event.seq > leg.started.seq and (end is None or event.seq < end.seq)
        ]
        for point, event in _of_leg(leg, inside):
            yield f"{leg.number}-{point}", event
    closing = [event for event in events.items if event.name == "detached"]
    if closing and legs:
        yield f"{legs[-1].number}-all-closed", closing[-1]


def _of_leg(leg: Leg, inside: list[Event]) -> Iterator[tuple[str, Event]]:
    if leg.suspended is not None:
        yield "source-quiesced", leg.suspended
    closed = [e for e in inside if e.name == "deactivated" and e.host == leg.source]
    if closed:
        yield "source-closed", closed[-1]
    read = [e for e in inside if e.name in READS and e.host == leg.destination and is_operation(e)]
    if read:
        yield "destination-opened", read[-1]
    if leg.resumed is not None:
        written = (
            e
            for e in inside
            if e.seq > leg.resumed.seq and e.name == "allocated" and e.host == leg.destination
        )
        yield "destination-wrote", next(written, leg.resumed)
