"""Faults to plant in a copy of the metadata snapshots and of the events."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vhdtool.oracle.checks.activation import Reading
from vhdtool.oracle.evidence.events import READS, RELEASES, Event, Events
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.faults import Fault, bat_of, damaged_blocks, names_block


def snapshot_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """In a later snapshot: an entry gone, an entry moved, a bitmap bit gone."""
    snapshots = evidence.record.snapshots
    damaged = damaged_blocks(judged)
    pairs = [
        (place, block)
        for place in range(len(snapshots) - 1, 0, -1)
        for block in sorted(_common(snapshots[place - 1].meta, snapshots[place].meta), key=int)
        if int(block) not in damaged
    ]
    for name, code, pick in (
        ("entry-gone", "bat-vanished", 0),
        ("entry-moved", "bat-moved", len(pairs) // 2),
        ("bit-gone", "bitmap-bit-lost", -1),
    ):
        if not pairs:
            return
        place, block = pairs[pick]
        meta: dict[str, Any] = dict(snapshots[place].meta)
        if name == "bit-gone" and meta["bitmaps"][block] is None:
            return  # a qcow2 image has no bitmaps
        if name == "bit-gone":
            # The last bit that is set, and no other.
            bits = int(meta["bitmaps"][block], 16)
            less = f"{bits & (bits - 1):0{len(meta['bitmaps'][block])}x}"
            meta["bitmaps"] = {**meta["bitmaps"], block: less}
        elif name == "entry-moved":
            meta["bat"] = {**meta["bat"], block: meta["bat"][block] + 1}
        else:
            meta["bat"] = {key: at for key, at in meta["bat"].items() if key != block}
            meta["bitmaps"] = {key: b for key, b in meta["bitmaps"].items() if key != block}
        changed = [*snapshots]
        changed[place] = replace(snapshots[place], meta=meta)
        faulty = evidence.with_snapshots(tuple(changed))
        yield Fault("metadata", name, faulty, names_block(code, int(block)))


def event_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """Events that contradict one another, and the snapshots: dropped, out of order, unaccounted."""
    events = evidence.record.events
    if not events.complete or judged.activation.worst("doubt"):
        return
    for name, oracle, code, changed in _broken(events):
        faulty = evidence.with_events(changed)
        yield Fault(oracle, name, faulty, lambda f, code=code: f.code == code)  # type: ignore[misc]


def _broken(events: Events) -> Iterator[tuple[str, str, str, Events]]:
    """(name, oracle, code of the finding, events) of each."""
    found: dict[str, Event] = {}
    for event in events.items:
        found.setdefault(event.name, event)
    releases = [event for event in events.items if event.name in RELEASES and event.epoch]
    reads = [event for event in events.items if event.name in READS and event.epoch]
    if reads and releases:
        moved = tuple(_moved_up(event, reads[0].epoch or 0) for event in events.items)
        yield "epoch-untold", "activation", "epoch-untold", Events(moved, ())
        yield "release-gone", "activation", "shim-order", _without(events, releases[-1])
    if start := found.get("migrate-started"):
        yield "leg-broken", "activation", "leg-order", _without(events, start)
    if "allocated" in found:
        gone = _without(events, found["allocated"])
        yield "allocation-untold", "metadata", "block-untold", gone


def _without(events: Events, gone: Event) -> Events:
    kept = [event for event in events.items if event is not gone]
    return Events(tuple(replace(event, seq=n) for n, event in enumerate(kept, 1)), ())


def _common(before: Any, after: Any) -> list[str]:
    """Blocks that two snapshots agree on, with a bit to lose where there are bits."""
    return [
        block
        for block, at in bat_of(before).items()
        if bat_of(after).get(block) == at
        and (before["bitmaps"].get(block, "") is None or before["bitmaps"][block].strip("0"))
        and before["bitmaps"].get(block) == after["bitmaps"].get(block)
    ]


def activation_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """A second host that activates while the first, and while the last, activation lasts."""
    known = {who for f in judged.activation.worst("corrupt") for who in f.who}
    alone = [
        one
        for one in judged.activation.readings
        if one.active and one.release is not None and one.release.epoch is not None
    ]
    sound = [one for one in alone if one.event.who not in known] or alone
    sound.sort(key=lambda one: one.epoch)
    for name, one in (("first", sound[:1]), ("last", sound[-1:])):
        for reading in one:
            events, who = second_activation(evidence, reading)
            new = reading.epoch + 1
            yield Fault(
                "activation", f"second-activation-{name}", evidence.with_events(events),
                _intruder(who, new),
            )  # fmt: skip


def _intruder(who: str, epoch: int) -> Callable[[Finding], bool]:
    def names(finding: Finding) -> bool:
        met = who in finding.who
        return finding.code == "activation-overlap" and met and (finding.epochs or (0,))[0] == epoch

    return names


def second_activation(evidence: Evidence, during: Reading) -> tuple[Events, str]:
    """All events with a stranger's activation inside one of them, and who that is.

    Where nobody has it, it has the same pid on another host: they are two processes all the same.
    Epochs are whole numbers without room between them: those behind move up by two.
    """
    items = evidence.record.events.items
    hosts = {event.host for event in items if event.pid is not None} - {during.event.host}
    host = min(hosts, default="another-host")
    start = during.event
    known = {event.who for event in items}
    pid = start.pid or 0
    while f"{host}:{pid}" in known:
        pid += 1
    first, last = during.epoch + 1, during.epoch + 2
    base = replace(start, host=host, pid=pid, side="destination", epoch=first)
    times = {"read_mono": start.mono, "lease": True}
    intruder = [
        replace(base, name="activated", extra=times),
        replace(base, name="first-request", extra={"request": "write"}),
        replace(base, name="deactivated", epoch=last, extra={"ended": first}),
    ]
    changed: list[Event] = []
    for event in items:
        changed.append(_moved_up(event, during.epoch))
        if event is start:
            changed += intruder
    numbered = tuple(replace(event, seq=seq) for seq, event in enumerate(changed, 1))
    return Events(numbered, evidence.record.events.problems), f"{host}:{pid}"


def _moved_up(event: Event, behind: int) -> Event:
    epoch, ended = event.epoch, event.integer("ended")
    extra = event.extra
    if ended is not None and ended > behind:
        extra = {**extra, "ended": ended + 2}
    if epoch is not None and epoch > behind:
        epoch += 2
    return replace(event, epoch=epoch, extra=extra)
