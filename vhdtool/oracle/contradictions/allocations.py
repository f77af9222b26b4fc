"""The allocations of the shims, against each snapshot and the closed image.

A shim reports a block after its BAT entry is in the file. So a snapshot shows every block that was
reported before it, at the sector that was reported, and no block of a metadata read that had not
begun. Reports of blocks may arrive late while a snapshot is taken. A block that is reported after
the controller's next operation, and not shortly after it, was not in the file yet.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vhdtool.oracle.evidence.allocations import Allocations
from vhdtool.oracle.evidence.events import READS, RELEASES, Events
from vhdtool.oracle.evidence.grammar import cite, is_operation
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, doubt

SECTOR = 512
LATE_EVENTS = 32
"""Allocations that may reach the controller after its next operation."""
UNWRITTEN_CLUSTERS = 32
"""Clusters that a live qcow2 image may map past the end of its file."""
Meta = Mapping[str, Any]


def check_allocations(
    allocations: Allocations,
    events: Events,
    legs: Sequence[Leg],
    snapshots: Sequence[Snapshot],
    image: Meta | None,
) -> Iterator[Finding]:
    """Doubts: either the event or the snapshot may be wrong."""
    if not events.complete:
        return
    for one, other in allocations.repeated:
        block = one.integer("block")
        text = f"block {block} was allocated twice: {cite(one)} and {cite(other)}"
        yield Finding("allocated-twice", text, "doubt", block)
    for snapshot in snapshots:
        if snapshot.meta["header"] is not None:
            yield from _in_snapshot(allocations, events, legs, snapshot)
            yield from _file_size(allocations, events, snapshot)
    yield from _changed_while_stopped(events, legs, snapshots)
    yield from _late(events, legs)
    if image is not None and image.get("header"):
        end = events.last_seq
        shown = allocations.units.blocks_in(image)
        yield from _compare(allocations, shown, "the image", end, end)


def _stopped_leg(legs: Sequence[Leg], seq: int) -> Leg | None:
    """The leg in which the guest was stopped after event `seq`."""
    for leg in legs:
        again = leg.resumed or leg.outcome
        if leg.suspended and leg.suspended.seq <= seq and again and seq < again.seq:
            return leg
    return None


def _late(events: Events, legs: Sequence[Leg]) -> Iterator[Finding]:
    """At SUSPENDED every request was answered, so that few allocations can still be reported."""
    for leg in legs:
        stop = leg.suspended
        if stop is None:
            continue
        following = itertools.takewhile(lambda e: not is_operation(e), events.items[stop.seq :])
        late = [event for event in following if event.name == "allocated"]
        if len(late) > LATE_EVENTS:
            text = f"{len(late)} blocks were allocated after {cite(stop)}, up to {cite(late[-1])}, "
            yield doubt("block-late", text + "while the guest was stopped")


def _changed_while_stopped(
    events: Events, legs: Sequence[Leg], snapshots: Sequence[Snapshot]
) -> Iterator[Finding]:
    """A stopped guest allocates nothing; an image that no shim can write does not change."""
    for before, after in itertools.pairwise(snapshots):
        leg = _stopped_leg(legs, before.seq)
        if leg is None or leg is not _stopped_leg(legs, after.seq):
            continue
        keys = ["bat"]
        if not writers_at(events, before.seq):
            keys.append("bitmaps")
        elif before.meta["footer"] is None:
            # QEMU writes a table when it flushes or closes.
            continue
        for key in keys:
            if before.meta[key] != after.meta[key]:
                text = f"`{key}` changed from metadata/{before.name}.json to "
                text += f"metadata/{after.name}.json while the guest was stopped"
                yield doubt("still-changed", text)


def _in_snapshot(
    allocations: Allocations, events: Events, legs: Sequence[Leg], snapshot: Snapshot
) -> Iterator[Finding]:
    # QEMU writes a table when it flushes or closes, so that a live qcow2 image may lag behind.
    lags = not allocations.units.have_sectors and bool(writers_at(events, snapshot.seq))
    due = -1 if lags else snapshot.seq
    steps = [e.seq for e in events.items if e.seq > snapshot.seq and is_operation(e)]
    latest = (steps[0] if steps else events.last_seq) + LATE_EVENTS
    shown = allocations.units.blocks_in(snapshot.meta)
    name = f"metadata/{snapshot.name}.json"
    yield from _compare(allocations, shown, name, due, latest)
    begun = {e.epoch for e in events.items if e.name in READS and e.seq <= snapshot.seq}
    stopped = _stopped_leg(legs, snapshot.seq)
    if stopped is not None:
        # The guest has sent the destination no request yet.
        begun -= {e.epoch for e in events.items if e.host == stopped.destination}
    for block in shown:
        event = allocations.by_block.get(block)
        if event is not None and snapshot.seq < event.seq <= latest and event.epoch not in begun:
            text = f"{name} (seq {snapshot.seq}) has block {block}, but {cite(event)} is later, "
            text += f"on the metadata read at epoch {event.epoch}"
            yield Finding("block-early", text, "doubt", block)


def _compare(
    allocations: Allocations, shown: dict[int, int], name: str, due: int, latest: int
) -> Iterator[Finding]:
    """Requires blocks reported up to `due`; refuses blocks reported after `latest`, or never."""
    for block, event in allocations.by_block.items():
        sector = shown.get(block)
        if sector is None:
            if event.seq <= due:
                text = f"{name} does not have block {block} of {cite(event)}"
                yield Finding("block-missing", text, "doubt", block)
        elif event.seq > latest:
            text = f"{name} has block {block}, but {cite(event)} is later"
            yield Finding("block-early", text, "doubt", block)
        elif allocations.units.have_sectors and sector != event.integer("sector"):
            text = f"{name} has block {block} at sector {sector}, but {cite(event)} has it at "
            text += f"sector {event.integer('sector')}"
            yield Finding("block-place", text, "doubt", block)
    for block in shown.keys() - allocations.by_block.keys():
        text = f"{name} has block {block}, which no event allocated"
        yield Finding("block-untold", text, "doubt", block)


def _file_size(allocations: Allocations, events: Events, snapshot: Snapshot) -> Iterator[Finding]:
    """The file ends after its last block, and where the last release truncated it."""
    meta: Meta = snapshot.meta
    size, highest = meta["file_size"], max(meta["bat"].values(), default=0)
    name = f"metadata/{snapshot.name}.json"
    units, is_open = allocations.units, bool(writers_at(events, snapshot.seq))
    # QEMU maps a few clusters of a live image before it has written them.
    ahead = UNWRITTEN_CLUSTERS * units.entries * 8 if is_open and not units.have_sectors else 0
    if highest * SECTOR >= size + ahead:
        text = f"{name}: `file_size` is {size}, but a block is at sector {highest}, after that"
        yield doubt("size-short", text)
    last = next(
        (e for e in reversed(events.items) if e.seq <= snapshot.seq and e.name in RELEASES), None
    )
    if last is None or is_open or not units.have_sectors:
        return
    end = last.integer("truncated_to")
    if end is not None and end != size:
        text = f"{name}: `file_size` is {size}, but {cite(last)} truncated the file to {end}"
        yield doubt("size-other", text)


def writers_at(events: Events, seq: int) -> set[str]:
    """The processes that had the image open for writing after event `seq`.

    With the guard on, only the owner of the lease writes.
    """
    guarded = any(event.extra.get("lease") is True for event in events.items)
    writers: set[str] = set()
    for event in events.items:
        if event.seq > seq:
            break
        if event.name in READS:
            if event.extra.get("lease") is True or not guarded:
                writers.add(event.who)
        elif event.name in RELEASES:
            writers.discard(event.who)
    return writers
