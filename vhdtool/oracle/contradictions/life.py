"""The events parsed by the grammar: the legs of the controller, and the life of each shim."""

from collections.abc import Iterator
from dataclasses import dataclass

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import (
    CONTROLLER,
    CONTROLLER_HOST,
    FIRSTS,
    READS,
    RELEASES,
    Event,
    Events,
)
from vhdtool.oracle.evidence.grammar import AT_SOURCE, GONE, LEG, NEW, SHIM, SIDES, line
from vhdtool.oracle.finding import Finding, doubt

REFUSABLE = ("copying", "suspended")
"""States of a leg in which the destination may refuse."""


def life(events: Events, case: Case) -> list[Finding]:
    """Doubts about events that cannot follow one another; none while events are missing."""
    if not events.complete:
        return []
    return [*_legs(events, case), *_shims(events)]


@dataclass
class _Leg:
    """Where the parse of the controller's events stands."""

    source: str
    destination: str
    number: int = 0
    state: str = AT_SOURCE
    entered: Event | None = None
    """The event that led to `state`."""
    excuse: Event | None = None
    """A refusal or a fault that lets this leg be cancelled."""

    def sides(self) -> dict[str, str]:
        return {self.source: "source", self.destination: "destination"}


def _legs(events: Events, case: Case) -> Iterator[Finding]:
    hosts = case.first_hosts
    if hosts is None:
        text = f"case.json: `direction` {case.direction[:60]!r} names no two of its hosts"
        yield doubt("direction", text)
        return
    leg = _Leg(*hosts)
    before = leg.sides()
    mono = None
    for event in events.items:
        if event.name in CONTROLLER:
            if mono is not None and event.mono < mono.mono:
                yield doubt("time-falls", f"{line(event)} was stamped before {line(mono)}")
            mono = event
            problem = _next(leg, event)
            if problem:
                # What follows would be judged from a wrong state.
                yield doubt("leg-order", problem)
                return
        elif event.name == "refused" and event.host == leg.destination and leg.state in REFUSABLE:
            leg.excuse = event
        problem = _place(leg, event, before)
        if problem:
            yield doubt("leg-place", problem)
            return
        if event.name in ("migrated", "cancelled"):
            before = leg.sides()
            if event.name == "migrated":
                leg.source, leg.destination = leg.destination, leg.source


def _next(leg: _Leg, event: Event) -> str | None:
    """Takes a controller's event; says why it cannot come here."""
    following = LEG[leg.state].get(event.name)
    if following is None:
        since = f", since {line(leg.entered)}" if leg.entered else ""
        return f"{line(event)} cannot come where leg {event.leg} is {leg.state}{since}"
    if event.name == "migrate-started":
        leg.number += 1
        leg.excuse = None
        direction = event.extra.get("direction")
        known = f"{leg.source}->{leg.destination}"
        if direction is not None and direction != known:
            return f"{line(event)} goes {str(direction)[:60]!r}, the guest is where {known} begins"
    elif event.name == "fault-injected":
        leg.excuse = event
    elif event.name == "cancelled" and leg.excuse is None:
        return (
            f"{line(event)}: leg {leg.number} was cancelled, but before it {leg.destination} "
            f"refused nothing and no fault was injected"
        )
    leg.state, leg.entered = following, event
    return None


def _place(leg: _Leg, event: Event, before: dict[str, str]) -> str | None:
    """Whether an event's leg, host and side fit where the guest is."""
    waiting = leg.state == AT_SOURCE and event.name not in ("migrated", "cancelled")
    allowed = (leg.number, leg.number + 1) if waiting and leg.number else (max(leg.number, 1),)
    if event.leg not in allowed:
        return f"{line(event)} is of leg {event.leg}, it stands in leg {allowed[0]}"
    sides = {**leg.sides(), CONTROLLER_HOST: "controller"}
    right = {sides.get(event.host)}
    if waiting and leg.number:
        # Between two legs the hosts have the sides of the one that the event names.
        old = {before.get(event.host, sides.get(event.host))}
        right = old if event.leg == leg.number else right | old
    if event.side not in right:
        return f"{line(event)} says that {event.host} is the {event.side}, in leg {event.leg}"
    wanted = SIDES.get(event.name)
    if wanted and event.side not in (wanted, "controller"):
        return f"{line(event)} is about the {event.side}, not the {wanted}"
    if event.name not in CONTROLLER and event.host == CONTROLLER_HOST:
        return f"{line(event)} is no event of the controller"
    return None


@dataclass
class _Shim:
    """Where the parse of one process stands."""

    state: str = NEW
    last: Event | None = None
    read: Event | None = None
    first: Event | None = None
    wrote: Event | None = None


def _shims(events: Events) -> Iterator[Finding]:
    shims: dict[str, _Shim] = {}
    broken: set[str] = set()
    for event in events.items:
        if event.name in CONTROLLER or event.who in broken:
            continue
        shim = shims.setdefault(event.who, _Shim())
        problem = _step(shim, event)
        if problem:
            yield doubt("shim-order", problem)
            broken.add(event.who)
        shim.last = event
    for who, shim in shims.items():
        if who not in broken and shim.state != GONE and shim.last:
            text = f"{who} is never detached: its last event is {line(shim.last)}"
            yield doubt("shim-order", text)


def _step(shim: _Shim, event: Event) -> str | None:
    """Takes an event of a shim; says why it cannot come here."""
    if event.pid is None:
        return f"{line(event)} names no process"
    following = SHIM[shim.state].get(event.name)
    if following is None or (shim.state == "open" and not _may_reread(shim, event)):
        last = f" (after line {shim.last.seq})" if shim.last else ""
        return f"{line(event)} of {event.who} cannot come where its disk is {shim.state}{last}"
    shim.state = following
    problem = _times(shim, event) or _reading(shim, event)
    return f"{line(event)} of {event.who} {problem}" if problem else None


def _may_reread(shim: _Shim, event: Event) -> bool:
    """Only a standby is activated, and only a request reopens."""
    if event.name == "opened":
        return event.extra.get("implicit") is True
    return event.name != "activated" or shim.read is None or shim.read.name == "opened"


def _times(shim: _Shim, event: Event) -> str | None:
    """A shim's own clock, compared with nothing but itself."""
    if shim.last is not None and event.mono < shim.last.mono:
        return f"was stamped before its own line {shim.last.seq}"
    for key in ("began_mono", "read_mono", "last_metadata_mono"):
        at = event.number(key)
        if at is not None and at > event.mono:
            return f"was stamped before its `{key}`"
    return None


def _reading(shim: _Shim, event: Event) -> str | None:
    """What a shim tells of a metadata read must be told of the read that it has."""
    if event.name in READS:
        shim.read, shim.first, shim.wrote = event, None, None
        return _kind_of_read(event)
    epoch = shim.read.epoch if shim.read else None
    if event.name in FIRSTS | {"allocated"}:
        if event.epoch != epoch:
            return f"is told of the read at epoch {event.epoch}, it has that at epoch {epoch}"
        return _served(shim, event)
    if event.name in RELEASES:
        ended = event.integer("ended")
        if ended is None and event.epoch is not None:
            return f"took epoch {event.epoch} and does not say which read it ended"
        if ended != epoch:
            return f"ends the read at epoch {ended}, it has that at epoch {epoch}"
        shim.read, shim.first, shim.wrote = None, None, None
    elif event.name == "refused" and event.extra.get("op") in ("activate", "request"):
        # The early read of a standby is dropped before the lease is asked for.
        shim.read = None
    return None


def _kind_of_read(event: Event) -> str | None:
    """An open takes no lease and has a mode; what takes the lease says whether it did."""
    lease = event.extra.get("lease")
    if event.name == "opened" and lease:
        return "is an open, and says that it took the lease"
    if event.name != "opened" and "lease" not in event.extra:
        return "does not say whether it took the lease"
    return None


def _served(shim: _Shim, event: Event) -> str | None:
    if event.name == "first-request":
        if shim.first is not None:
            return f"is the second one on this read, the first is line {shim.first.seq}"
        shim.first = event
    elif event.name == "first-write":
        if shim.wrote is not None:
            return f"is the second one on this read, the first is line {shim.wrote.seq}"
        if shim.first is None:
            return "has no first-request before it"
        shim.wrote = event
    elif shim.wrote is None:
        return "has no first-write before it"
    return None
