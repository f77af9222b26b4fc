"""Allocations that the shims told of, against each snapshot and the closed image.

A shim tells of a block after its entry is in the file. So a snapshot shows every block that was
told before it, at the place that was told, and none of a metadata read that had not begun. What a
shim tells late, while a snapshot is taken, is allowed for; what it tells after the next operation
but one of the controller was not there yet.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.events import READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.grammar import is_step, line
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, doubt

SECTOR = 512
ON_THE_WAY = 32
"""Events that may still be on their way when the controller goes on."""
AHEAD = 32
"""Clusters that a live qcow2 image may map behind the end of its file."""
Meta = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """Blocks by the event that told of them first; `unit` entries of a BAT make one block.

    A block of qcow2 is what one L2 table maps, and its place is not told.
    """

    first: dict[int, Event]
    twice: tuple[tuple[Event, Event], ...]
    unit: int
    placed: bool
    load: bool = True
    """Whether these blocks are the blocks of the write load."""

    def blocks_of(self, meta: Meta) -> dict[int, int]:
        """Blocks that a snapshot shows, and where."""
        return {int(key) // self.unit: at for key, at in meta["bat"].items()}


def told_by(events: Events, unit: int, placed: bool, load: bool = True) -> Told:
    first: dict[int, Event] = {}
    twice = []
    for event in events.named("allocated"):
        block = event.integer("block")
        assert block is not None
        if block in first:
            twice.append((first[block], event))
        first.setdefault(block, event)
    return Told(first, tuple(twice), unit, placed, load)


def blocks(
    told: Told,
    events: Events,
    attempts: Sequence[Attempt],
    snapshots: Sequence[Snapshot],
    image: Meta | None,
) -> Iterator[Finding]:
    """Doubts: of what is told and what is shown, it is not known which is wrong."""
    if not events.complete:
        return
    for one, other in told.twice:
        block = one.integer("block")
        text = f"block {block} was allocated by {line(one)}, and again by {line(other)}"
        yield Finding("allocated-twice", text, "doubt", block)
    for snapshot in snapshots:
        if snapshot.meta["header"] is not None:
            yield from _shown(told, events, attempts, snapshot)
            yield from _size(told, events, snapshot)
    yield from _still(events, attempts, snapshots)
    yield from _late(events, attempts)
    if image is not None and image.get("header"):
        name, end = "the image", events.last_seq
        yield from _compared(told, told.blocks_of(image), name, end, end)


def _stopped(attempts: Sequence[Attempt], seq: int) -> Attempt | None:
    """The attempt in which the guest stood still behind event `seq`."""
    for attempt in attempts:
        again = attempt.resumed or attempt.outcome
        if attempt.suspended and attempt.suspended.seq <= seq and again and seq < again.seq:
            return attempt
    return None


def _late(events: Events, attempts: Sequence[Attempt]) -> Iterator[Finding]:
    """Behind SUSPENDED every request is answered, so little can be left to tell."""
    for attempt in attempts:
        stop = attempt.suspended
        if stop is None:
            continue
        following = itertools.takewhile(lambda e: not is_step(e), events.items[stop.seq :])
        told = [event for event in following if event.name == "allocated"]
        if len(told) > ON_THE_WAY:
            text = f"{len(told)} blocks were allocated behind {line(stop)}, up to {line(told[-1])}"
            yield doubt("block-late", f"{text}, and the guest stood still")


def _still(
    events: Events, attempts: Sequence[Attempt], snapshots: Sequence[Snapshot]
) -> Iterator[Finding]:
    """While the guest stands still nothing is allocated; while nobody can write nothing changes."""
    for before, after in itertools.pairwise(snapshots):
        attempt = _stopped(attempts, before.seq)
        if attempt is None or attempt is not _stopped(attempts, after.seq):
            continue
        keys = ["bat"]
        if not _open_at(events, before.seq):
            keys.append("bitmaps")
        elif before.meta["footer"] is None:
            # QEMU writes a table when it flushes or closes.
            continue
        for key in keys:
            if before.meta[key] != after.meta[key]:
                text = f"metadata/{before.name}.json and metadata/{after.name}.json differ in "
                yield doubt("still-changed", f"{text}`{key}`, and the guest stood still")


def _shown(
    told: Told, events: Events, attempts: Sequence[Attempt], snapshot: Snapshot
) -> Iterator[Finding]:
    # QEMU writes a table when it flushes or closes, so a live qcow2 image may lag behind.
    lags = not told.placed and bool(_open_at(events, snapshot.seq))
    due = -1 if lags else snapshot.seq
    steps = [event.seq for event in events.items if event.seq > snapshot.seq and is_step(event)]
    latest = (steps[0] if steps else events.last_seq) + ON_THE_WAY
    shown = told.blocks_of(snapshot.meta)
    name = f"metadata/{snapshot.name}.json"
    yield from _compared(told, shown, name, due, latest)
    begun = {e.epoch for e in events.items if e.name in READS and e.seq <= snapshot.seq}
    stopped = _stopped(attempts, snapshot.seq)
    if stopped is not None:
        # The guest has asked the destination for nothing yet.
        begun -= {e.epoch for e in events.items if e.host == stopped.destination}
    for block in shown:
        event = told.first.get(block)
        if event is not None and snapshot.seq < event.seq <= latest and event.epoch not in begun:
            text = f"{name} (seq {snapshot.seq}) shows block {block}, which {line(event)} "
            text += f"allocated later, on the read at epoch {event.epoch}"
            yield Finding("block-early", text, "doubt", block)


def _compared(
    told: Told, shown: dict[int, int], name: str, due: int, latest: int
) -> Iterator[Finding]:
    """Blocks told up to `due` must be there; none may be there that was told after `latest`."""
    for block, event in told.first.items():
        at = shown.get(block)
        if at is None:
            if event.seq <= due:
                text = f"{line(event)}: block {block} was allocated, and {name} does not show it"
                yield Finding("block-missing", text, "doubt", block)
        elif event.seq > latest:
            text = f"{name} shows block {block}, which was allocated later, by {line(event)}"
            yield Finding("block-early", text, "doubt", block)
        elif told.placed and at != event.integer("sector"):
            text = f"{name} has block {block} at sector {at}, {line(event)} told of sector "
            yield Finding("block-place", f"{text}{event.integer('sector')}", "doubt", block)
    for block in shown.keys() - told.first.keys():
        text = f"{name} shows block {block}, of which no event tells"
        yield Finding("block-untold", text, "doubt", block)


def _size(told: Told, events: Events, snapshot: Snapshot) -> Iterator[Finding]:
    """The file holds what its table points at; who truncated it last said where it ends."""
    meta: Meta = snapshot.meta
    size, highest = meta["file_size"], max(meta["bat"].values(), default=0)
    name = f"metadata/{snapshot.name}.json"
    is_open = bool(_open_at(events, snapshot.seq))
    # QEMU maps a few clusters of a live image before it has written there.
    ahead = AHEAD * told.unit * 8 if is_open and not told.placed else 0
    if highest * SECTOR >= size + ahead:
        text = f"{name}: `file_size` is {size}, and a block lies at sector {highest} behind it"
        yield doubt("size-short", text)
    last = next(
        (e for e in reversed(events.items) if e.seq <= snapshot.seq and e.name in RELEASES), None
    )
    if last is None or is_open or not told.placed:
        return
    end = last.integer("truncated_to")
    if end is not None and end != size:
        text = f"{name}: `file_size` is {size}, {line(last)} truncated the file to {end}"
        yield doubt("size-other", text)


def _open_at(events: Events, seq: int) -> set[str]:
    """The processes that had the image open after event `seq`, and could write to it.

    With the guard on that takes the lease: a standby writes nothing.
    """
    guarded = any(event.extra.get("lease") is True for event in events.items)
    held: set[str] = set()
    for event in events.items:
        if event.seq > seq:
            break
        if event.name in READS:
            if event.extra.get("lease") is True or not guarded:
                held.add(event.who)
        elif event.name in RELEASES:
            held.discard(event.who)
    return held
