"""Changes of events.jsonl: events dropped, repeated, moved, renamed, and with other fields."""

import itertools
from collections.abc import Iterator
from typing import Any

from tests.tamper.draft import CONTRADICTS, EITHER, SAME, Change, Draft, Event

READS = ("opened", "activated", "unpaused")
RELEASES = ("paused", "closed", "deactivated")
RENAMES = {
    "attached": "detached", "detached": "attached", "opened": "unpaused",
    "activated": "attached", "unpaused": "paused", "paused": "unpaused",
    "closed": "attached", "deactivated": "activated", "first-request": "first-write",
    "first-write": "first-request", "refused": "fenced", "fenced": "refused",
    "migrate-started": "migrated", "suspended": "resumed", "resumed": "suspended",
    "migrated": "cancelled", "cancelled": "migrated", "fault-injected": "kept-out",
    "kept-out": "suspended",
}  # fmt: skip
"""Event -> the name that it gets instead."""
ALONE = ({"migrate-started", "attached"}, {"resumed", "first-request"})
"""Neighbours of which either may be first: one is a shim's, the other the controller's."""


def event_changes(draft: Draft) -> Iterator[Change]:
    """Changes of every event but the allocations, and of a few of those."""
    some = draft.allocations()
    some = [some[len(some) * part // 8] for part in (0, 1, 3, 5, 7)] + some[-1:]
    for n in [*draft.operations(), *some]:
        yield from _single(draft, n)
    yield from _allocations(draft, some[2])
    yield from _neighbours(draft)
    yield from _epochs(draft)
    yield from _all(draft)
    yield from _unknown_process(draft)
    yield from _refusals(draft)
    yield from _harmless()


def _single(draft: Draft, n: int) -> Iterator[Change]:
    event = draft.events[n]
    name = f"event {event['seq']} {event['event']}"
    yield Change(f"{name}: dropped", CONTRADICTS, lambda d: d.renumber(lambda e: e.__delitem__(n)))
    # The storage may have been tried twice.
    right = EITHER if event["event"] == "kept-out" else CONTRADICTS
    yield Change(f"{name}: doubled", right, lambda d: d.renumber(lambda e: _double(e, n)))
    yield Change(f"{name}: gone with a gap", CONTRADICTS, lambda d: _pop(d.events, n))
    if event["event"] in RENAMES:
        new = RENAMES[event["event"]]
        yield Change(f"{name}: renamed {new}", CONTRADICTS, lambda d: _set(d, n, event=new))
    yield Change(f"{name}: an unknown name", CONTRADICTS, lambda d: _set(d, n, event="paused?"))
    yield Change(f"{name}: of another leg", CONTRADICTS, lambda d: _set(d, n, leg=event["leg"] + 2))
    if event["host"] in draft.case["hosts"]:
        other = draft.other(event["host"])
        side = "destination" if event["side"] == "source" else "source"
        yield Change(f"{name}: at {other}", CONTRADICTS, lambda d: _set(d, n, host=other))
        yield Change(f"{name}: as the {side}", CONTRADICTS, lambda d: _set(d, n, side=side))
        both = {"host": other, "side": side}
        yield Change(f"{name}: at {other}, its side", CONTRADICTS, lambda d: _set(d, n, **both))
    yield Change(f"{name}: at an unknown host", CONTRADICTS, lambda d: _set(d, n, host="gamma"))
    if event["pid"] is not None:
        yield Change(f"{name}: another pid", CONTRADICTS, lambda d: _set(d, n, pid=99999))
        yield Change(f"{name}: no pid", CONTRADICTS, lambda d: _set(d, n, pid=None))
    for seconds in (-1000, 1000):
        later = event["mono"] + seconds
        # The end of a shim's clock, or of the controller's, can be anywhere.
        ends = _ends(draft, n, seconds)
        right = EITHER if ends else CONTRADICTS
        yield Change(f"{name}: {seconds:+} s", right, lambda d, at=later: _set(d, n, mono=at))


def _ends(draft: Draft, n: int, seconds: int) -> bool:
    """Whether no event of the same clock is on the side to which it is moved."""
    event = draft.events[n]
    whose = (event["host"], event["pid"]) if event["pid"] is not None else None
    rest = draft.events[n + 1 :] if seconds > 0 else draft.events[:n]
    return not any(whose == ((e["host"], e["pid"]) if e["pid"] else None) for e in rest)


def _allocations(draft: Draft, n: int) -> Iterator[Change]:
    event = draft.events[n]
    free = next(b for b in range(1 << 20) if b not in {e.get("block") for e in draft.events})
    for key, value in (
        ("block", free), ("block", event["block"] + 1), ("epoch", event["epoch"] + 1),
        ("epoch", 1000), ("block", -1), ("block", "3"), ("epoch", None),
    ):  # fmt: skip
        yield Change(
            f"allocation: {key} {value}", CONTRADICTS,
            lambda d, key=key, value=value: _set(d, n, **{key: value}),
        )  # fmt: skip
    if draft.kind == "vhd":
        for off in (1, -8, 4104):
            yield Change(
                f"allocation: sector {off:+}", CONTRADICTS,
                lambda d, off=off: _set(d, n, sector=event["sector"] + off),
            )  # fmt: skip

        def swapped(d: Draft) -> None:
            one, other = d.events[n], d.events[d.allocations()[-1]]
            one["sector"], other["sector"] = other["sector"], one["sector"]

        yield Change("allocation: sectors of two swapped", CONTRADICTS, swapped)

    def twice(d: Draft) -> None:
        one, other = d.events[n], d.events[d.allocations()[-1]]
        one["block"], other["block"] = other["block"], one["block"]

    yield Change("allocation: blocks of two swapped", CONTRADICTS, twice)
    yield Change(
        "allocation: after its shim was detached", CONTRADICTS,
        lambda d: d.renumber(lambda e: e.append(e.pop(n))),
    )  # fmt: skip
    for name in ("suspended", "resumed"):
        try:
            draft.index(name)
        except IndexError:
            continue
        yield Change(
            f"allocation: all before `{name}` moved after it", CONTRADICTS,
            lambda d, name=name: d.renumber(lambda e: _moved_after(e, name)),
        )  # fmt: skip
    yield Change(
        "allocation: none is reported", CONTRADICTS,
        lambda d: d.renumber(lambda e: _keep(e, lambda one: one["event"] != "allocated")),
    )  # fmt: skip


def _neighbours(draft: Draft) -> Iterator[Change]:
    """Two operations swapped, with their times; and an operation moved to the end."""
    steps = draft.operations()
    for a, b in itertools.pairwise(steps):
        names = draft.events[a]["event"], draft.events[b]["event"]
        # A shim that is not needed any more may be detached before or after operations of others.
        apart = "detached" in names and draft.events[a]["host"] != draft.events[b]["host"]
        right = EITHER if apart or set(names) in ALONE else CONTRADICTS
        yield Change(
            f"events {a + 1} {names[0]} and {b + 1} {names[1]}: swapped", right,
            lambda d, a=a, b=b: d.renumber(lambda e: _swap(e, a, b)),
        )  # fmt: skip
    for n in steps[:-1]:
        name = draft.events[n]["event"]
        # A shim that is not needed any more may be detached at any time.
        right = EITHER if name == "detached" and _ends(draft, n, 1) else CONTRADICTS
        yield Change(
            f"event {n + 1} {name}: moved to the end", right,
            lambda d, n=n: d.renumber(lambda e: e.append(e.pop(n))),
        )  # fmt: skip


def _epochs(draft: Draft) -> Iterator[Change]:
    numbered = [n for n in draft.operations() if draft.events[n]["event"] in READS + RELEASES]
    numbered = [n for n in numbered if draft.events[n]["epoch"] is not None]
    for n in numbered:
        event = draft.events[n]
        for off in (-1, 1, 7):
            yield Change(
                f"event {n + 1} {event['event']}: epoch {off:+}", CONTRADICTS,
                lambda d, n=n, off=off: _set(d, n, epoch=d.events[n]["epoch"] + off),
            )  # fmt: skip
        if event.get("ended") is not None:
            for ended in (event["ended"] + 1, None, 500):
                yield Change(
                    f"event {n + 1} {event['event']}: ended {ended}", CONTRADICTS,
                    lambda d, n=n, ended=ended: _set(d, n, ended=ended),
                )  # fmt: skip
        if "lease" in event:
            yield Change(
                f"event {n + 1} {event['event']}: lease flipped", CONTRADICTS,
                lambda d, n=n: _set(d, n, lease=not d.events[n]["lease"]),
            )  # fmt: skip
    for place in range(2, len(numbered) + 1):
        yield Change(
            f"two epochs before {place} have no event", CONTRADICTS,
            lambda d, place=place: _shift(d, place, 2),
        )  # fmt: skip


def _shift(draft: Draft, start: int, by: int) -> None:
    """Makes every epoch from `start` on larger, wherever it is named."""
    for event in draft.events:
        for key in ("epoch", "ended", "released"):
            if isinstance(event.get(key), int) and event[key] >= start:
                event[key] += by
    for held in draft.holdings.values():
        # When the image was made, the counter was one below the first epoch.
        if held["epoch"] >= start or start == 1:
            held["epoch"] += by


def _all(draft: Draft) -> Iterator[Change]:
    """A change of all events at once."""
    first, second = draft.case["hosts"][:2]
    hosts = {first: second, second: first}
    sides = {"source": "destination", "destination": "source"}

    def over(**maps: dict[Any, Any]) -> Any:
        def apply(d: Draft) -> None:
            for event in d.events:
                for key, one in maps.items():
                    if key in event:
                        event[key] = one.get(event[key], event[key])

        return apply

    yield Change("all events: hosts swapped", CONTRADICTS, over(host=hosts))
    yield Change("all events: sides swapped", CONTRADICTS, over(side=sides))
    yield Change("all events: hosts and sides swapped", CONTRADICTS, over(host=hosts, side=sides))
    yield Change("all events: at one host", CONTRADICTS, over(host={second: first}))
    pids = {event["pid"] for event in draft.events if event["pid"] is not None}
    # Two processes of two hosts may have one number; two of one host, one after the other.
    whose = {(event["host"], event["pid"]) for event in draft.events if event["pid"] is not None}
    alone = len({host for host, _ in whose}) == len(whose)
    # The holdings name pids too.
    alone = alone and not (draft.path / "held").exists()
    yield Change("all events: one pid", SAME if alone else EITHER,
                 over(pid=dict.fromkeys(pids, 7)))  # fmt: skip
    yield Change("all events: no lease was taken", CONTRADICTS, over(lease={True: False}))
    yield Change("all events: of leg 1", CONTRADICTS if draft.case["legs"] > 1 else SAME,
                 over(leg={2: 1}))  # fmt: skip
    yield Change("all events: in reverse", CONTRADICTS, lambda d: d.renumber(lambda e: e.reverse()))
    yield Change("all events: seq from 0", CONTRADICTS, lambda d: _seq(d, -1))
    yield Change("all events: seq from 2", CONTRADICTS, lambda d: _seq(d, 1))
    yield Change("events: empty", CONTRADICTS, lambda d: d.events.clear())
    yield Change("events: cut off in the middle", CONTRADICTS, _cut)


def _unknown_process(draft: Draft) -> Iterator[Change]:
    """Events of a process that the record does not know."""
    places = [
        n for n in draft.operations() if draft.events[n]["event"] in ("suspended", "allocated")
    ]
    places = [*(places or draft.operations()[-3:])[:1], draft.allocations()[-1]]
    for n in places:
        host = draft.other(_host_at(draft, n))
        base = {**draft.events[draft.allocations()[0]], "host": host, "pid": 4321}
        wrote = {**base, "block": 5, "sector": 99, "epoch": 77}
        served = {**base, "event": "first-request", "epoch": 77}
        for name, extra in (("allocates", wrote), ("serves", served)):
            yield Change(
                f"an unknown process {name} at {n + 1}", CONTRADICTS,
                lambda d, n=n, extra=extra: d.renumber(lambda e: e.insert(n, _as(extra, d, n))),
            )  # fmt: skip
        yield Change(
            f"an unknown process reads and writes at {n + 1}", CONTRADICTS,
            lambda d, n=n, base=base: _second(d, n, base),
        )  # fmt: skip


def _host_at(draft: Draft, n: int) -> str:
    return str(next(e["host"] for e in reversed(draft.events[: n + 1]) if e["pid"] is not None))


def _as(extra: Event, draft: Draft, n: int) -> Event:
    side = next(
        (e["side"] for e in draft.events if e["host"] == extra["host"] and e["pid"]), "destination"
    )
    return {**extra, "leg": draft.events[n]["leg"], "side": side, "mono": draft.events[n]["mono"]}


def _second(draft: Draft, n: int, base: Event) -> None:
    """Inserts a whole activation, with epochs of its own."""
    newest = max(e["epoch"] or 0 for e in draft.events[:n] if e["event"] != "allocated")
    _shift(draft, newest + 1, 2)
    one = _as(base, draft, n)
    for key in ("block", "sector"):
        one.pop(key)
    read = {**one, "event": "activated", "epoch": newest + 1, "lease": True}
    read["read_mono"] = one["mono"]
    rest = [
        {**one, "event": "attached", "epoch": None},
        read,
        {**one, "event": "first-request", "epoch": newest + 1, "request": "read"},
        {**one, "event": "closed", "epoch": newest + 2, "ended": newest + 1},
        {**one, "event": "detached", "epoch": None},
    ]

    def insert(found: list[Event]) -> None:
        found[n:n] = rest

    draft.renumber(insert)


def _refusals(draft: Draft) -> Iterator[Change]:
    """Refusals by the wrong side, or at the wrong time, which do not count."""
    refused = [n for n in draft.operations() if draft.events[n]["event"] == "refused"]
    if not refused:
        return
    last = [n for n in draft.operations() if draft.events[n]["event"] == "cancelled"][-1]

    def all_to(d: Draft, **values: Any) -> None:
        for n in refused:
            _set(d, n, **values)

    source = draft.events[0]
    yield Change(
        "refusals: by the source", CONTRADICTS,
        lambda d: all_to(d, host=source["host"], side="source", pid=source["pid"]),
    )  # fmt: skip
    yield Change(
        "refusals: after the cancel", CONTRADICTS,
        lambda d: d.renumber(lambda e: _after(e, refused, last)),
    )  # fmt: skip
    yield Change(
        "refusals: dropped", CONTRADICTS,
        lambda d: d.renumber(lambda e: _keep(e, lambda one: one["event"] != "refused")),
    )  # fmt: skip
    cancelled = draft.events[last]
    there = next(e["host"] for e in draft.events if e["side"] == "destination")
    resumed = {**cancelled, "event": "resumed", "host": there, "side": "destination"}
    yield Change(
        "refusals: the guest was resumed all the same", CONTRADICTS,
        lambda d: d.renumber(lambda e: e.insert(last, dict(resumed))),
    )  # fmt: skip


def _harmless() -> Iterator[Change]:
    def each(change: Any) -> Any:
        def apply(d: Draft) -> None:
            d.events[:] = [change(event) for event in d.events]

        return apply

    def clock(d: Draft) -> None:
        times = ("mono", "began_mono", "read_mono", "last_metadata_mono", "stop_mono",
                 "completed_mono")  # fmt: skip
        for event in d.events:
            for key in times:
                if isinstance(event.get(key), float):
                    event[key] += 12345.5
        for chunk in d.chunks:
            chunk["mono"] += 12345.5

    yield Change("harmless: a clock that starts elsewhere", SAME, clock)
    yield Change("harmless: epochs that start elsewhere", SAME, lambda d: _shift(d, 1, 100))
    yield Change(
        "harmless: keys in another order", SAME, each(lambda e: dict(reversed(list(e.items()))))
    )
    yield Change(
        "harmless: a field of a later version", SAME, each(lambda e: {**e, "fence": {"by": 3}})
    )
    yield Change("harmless: the wall clock steps", SAME, each(lambda e: {**e, "wall": 1e9}))


def _set(draft: Draft, n: int, **values: Any) -> None:
    draft.events[n].update(values)


def _double(found: list[Event], n: int) -> None:
    found.insert(n, dict(found[n]))


def _pop(found: list[Event], n: int) -> None:
    found.pop(n)


def _swap(found: list[Event], a: int, b: int) -> None:
    found[a], found[b] = found[b], found[a]
    found[a]["mono"], found[b]["mono"] = found[b]["mono"], found[a]["mono"]


def _keep(found: list[Event], wanted: Any) -> None:
    found[:] = [event for event in found if wanted(event)]


def _moved_after(found: list[Event], name: str) -> None:
    at = next(n for n, event in enumerate(found) if event["event"] == name)
    moved = [event for event in found[:at] if event["event"] == "allocated"]
    rest = [event for event in found[:at] if event["event"] != "allocated"]
    found[: at + 1] = [*rest, found[at], *moved]


def _after(found: list[Event], places: list[int], last: int) -> None:
    moved = [found[n] for n in places]
    at = found[last]
    for event in moved:
        found.remove(event)
    where = found.index(at) + 1
    found[where:where] = moved


def _seq(draft: Draft, by: int) -> None:
    for event in draft.events:
        event["seq"] += by


def _cut(draft: Draft) -> None:
    del draft.events[len(draft.events) // 2 :]
