"""The events, against their grammar: the states of the legs, and those of each shim."""

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
from vhdtool.oracle.evidence.grammar import AT_SOURCE, GONE, LEG, NEW, SHIM, SIDES, cite
from vhdtool.oracle.finding import Finding, doubt

REFUSABLE = ("copying", "suspended")
"""States of a leg in which the destination may refuse."""


def check_event_order(events: Events, case: Case) -> list[Finding]:
    """Doubts about events that cannot follow one another; none if events are missing."""
    if not events.complete:
        return []
    return [*_legs(events, case), *_shims(events)]


@dataclass
class _LegState:
    """State of the leg that the controller's events are in."""

    source: str
    destination: str
    number: int = 0
    state: str = AT_SOURCE
    entered: Event | None = None
    """The event that led to `state`."""
    reason: Event | None = None
    """The refusal or fault for which this leg may be cancelled."""

    def sides(self) -> dict[str, str]:
        return {self.source: "source", self.destination: "destination"}


def _legs(events: Events, case: Case) -> Iterator[Finding]:
    hosts = case.first_hosts
    if hosts is None:
        text = f"case.json: `direction` {case.direction[:60]!r} does not name two of its hosts"
        yield doubt("direction", text)
        return
    leg = _LegState(*hosts)
    before = leg.sides()
    mono = None
    for event in events.items:
        if event.name in CONTROLLER:
            if mono is not None and event.mono < mono.mono:
                yield doubt(
                    "time-falls", f"the time of {cite(event)} is before that of {cite(mono)}"
                )
            mono = event
            problem = _advance_leg(leg, event)
            if problem:
                # Later events would be judged from a wrong state.
                yield doubt("leg-order", problem)
                return
        elif event.name == "refused" and event.host == leg.destination and leg.state in REFUSABLE:
            leg.reason = event
        problem = _wrong_side(leg, event, before)
        if problem:
            yield doubt("leg-place", problem)
            return
        if event.name in ("migrated", "cancelled"):
            before = leg.sides()
            if event.name == "migrated":
                leg.source, leg.destination = leg.destination, leg.source


def _advance_leg(leg: _LegState, event: Event) -> str | None:
    """Applies a controller's event; returns why it is not allowed in this state, or None."""
    following = LEG[leg.state].get(event.name)
    if following is None:
        since = f", since {cite(leg.entered)}" if leg.entered else ""
        return f"{cite(event)} is not allowed while leg {event.leg} is {leg.state}{since}"
    if event.name == "migrate-started":
        leg.number += 1
        leg.reason = None
        direction = event.extra.get("direction")
        expected = f"{leg.source}->{leg.destination}"
        if direction is not None and direction != expected:
            return f"{cite(event)} has direction {str(direction)[:60]!r} instead of {expected!r}"
    elif event.name == "fault-injected":
        leg.reason = event
    elif event.name == "cancelled" and leg.reason is None:
        return (
            f"{cite(event)}: leg {leg.number} was cancelled without a reason: {leg.destination} "
            f"refused nothing before, and no fault was injected"
        )
    leg.state, leg.entered = following, event
    return None


def _wrong_side(leg: _LegState, event: Event, before: dict[str, str]) -> str | None:
    """Returns why an event's leg, host or side cannot be right, or None."""
    waiting = leg.state == AT_SOURCE and event.name not in ("migrated", "cancelled")
    allowed = (leg.number, leg.number + 1) if waiting and leg.number else (max(leg.number, 1),)
    if event.leg not in allowed:
        return f"{cite(event)} has leg {event.leg}, but it is in leg {allowed[0]}"
    sides = {**leg.sides(), CONTROLLER_HOST: "controller"}
    right = {sides.get(event.host)}
    if waiting and leg.number:
        # Between two legs a host has the side of the leg that the event names.
        old = {before.get(event.host, sides.get(event.host))}
        right = old if event.leg == leg.number else right | old
    if event.side not in right:
        return f"{cite(event)}: {event.host} is not the {event.side} of leg {event.leg}"
    expected = SIDES.get(event.name)
    if expected and event.side not in (expected, "controller"):
        return f"{cite(event)} has side {event.side} instead of {expected}"
    if event.name not in CONTROLLER and event.host == CONTROLLER_HOST:
        return f"{cite(event)} cannot be an event of the controller"
    return None


@dataclass
class _ShimState:
    """State of one shim."""

    state: str = NEW
    last: Event | None = None
    read: Event | None = None
    first: Event | None = None
    wrote: Event | None = None


def _shims(events: Events) -> Iterator[Finding]:
    shims: dict[str, _ShimState] = {}
    broken: set[str] = set()
    for event in events.items:
        if event.name in CONTROLLER or event.who in broken:
            continue
        shim = shims.setdefault(event.who, _ShimState())
        problem = _advance_shim(shim, event)
        if problem:
            yield doubt("shim-order", problem)
            broken.add(event.who)
        shim.last = event
    for who, shim in shims.items():
        if who not in broken and shim.state != GONE and shim.last:
            text = f"{who} is never detached: its last event is {cite(shim.last)}"
            yield doubt("shim-order", text)


def _advance_shim(shim: _ShimState, event: Event) -> str | None:
    """Applies an event of a shim; returns why it is not allowed in this state, or None."""
    if event.pid is None:
        return f"{cite(event)} names no process"
    following = SHIM[shim.state].get(event.name)
    if following is None or (shim.state == "open" and not _may_reopen(shim, event)):
        last = f" (after line {shim.last.seq})" if shim.last else ""
        return f"{cite(event)} of {event.who} is not allowed while its disk is {shim.state}{last}"
    shim.state = following
    problem = _wrong_time(shim, event) or _wrong_read(shim, event)
    return f"{cite(event)} of {event.who} {problem}" if problem else None


def _may_reopen(shim: _ShimState, event: Event) -> bool:
    """Only a guest's request reopens an open image, and only a standby is activated."""
    if event.name == "opened":
        return event.extra.get("implicit") is True
    return event.name != "activated" or shim.read is None or shim.read.name == "opened"


def _wrong_time(shim: _ShimState, event: Event) -> str | None:
    """Compares the times of one shim with one another only."""
    if shim.last is not None and event.mono < shim.last.mono:
        return f"has a time before that of its line {shim.last.seq}"
    for key in ("began_mono", "read_mono", "last_metadata_mono"):
        at = event.number(key) if key in event.extra else None
        if at is not None and at > event.mono:
            return f"has a time before its `{key}`"
    return None


def _wrong_read(shim: _ShimState, event: Event) -> str | None:
    """Returns why an event does not belong to the shim's current metadata read, or None."""
    if event.name in READS:
        shim.read, shim.first, shim.wrote = event, None, None
        return _wrong_lease(event)
    epoch = shim.read.epoch if shim.read else None
    if event.name in FIRSTS | {"allocated"}:
        if event.epoch != epoch:
            return f"has epoch {_text(event.epoch)}, that of its metadata read is {_text(epoch)}"
        return _wrong_first(shim, event)
    if event.name in RELEASES:
        ended = event.integer("ended")
        if ended is None and event.epoch is not None:
            return f"took epoch {event.epoch}, but its `ended` is null"
        if ended != epoch:
            return f"has `ended` {_text(ended)}, the epoch of its metadata read is {_text(epoch)}"
        shim.read, shim.first, shim.wrote = None, None, None
    elif event.name == "refused" and event.extra.get("op") in ("activate", "request"):
        # A standby drops its early read before it asks for the lease.
        shim.read = None
    return None


def _text(epoch: int | None) -> str:
    return "null" if epoch is None else str(epoch)


def _wrong_lease(event: Event) -> str | None:
    """`opened` takes no lease; `activated` and `unpaused` have `lease`."""
    lease = event.extra.get("lease")
    if event.name == "opened" and lease:
        return "took the lease, which `opened` never does"
    if event.name != "opened" and "lease" not in event.extra:
        return "has no `lease`"
    return None


def _wrong_first(shim: _ShimState, event: Event) -> str | None:
    if event.name == "first-request":
        if shim.first is not None:
            return f"is the second on this metadata read, after line {shim.first.seq}"
        shim.first = event
    elif event.name == "first-write":
        if shim.wrote is not None:
            return f"is the second on this metadata read, after line {shim.wrote.seq}"
        if shim.first is None:
            return "has no first-request before it"
        shim.wrote = event
    elif shim.wrote is None:
        return "has no first-write before it"
    return None
