"""The grammar of events: which event may follow which, in a leg and in a shim.

Both are state tables, {state: {event: next state}}; docs/verdicts.md prints them. The events of a
leg come from the controller, one after the other. A shim is one process on one host. The events of
one shim are in the order in which they happened. Events of two shims are ordered only where the
controller requested an operation of one after the other had answered.
"""

from vhdtool.oracle.evidence.events import Event

Table = dict[str, dict[str, str]]

AT_SOURCE = "at the source"
LEG: Table = {
    AT_SOURCE: {"migrate-started": "copying"},
    "copying": {"kept-out": "copying", "suspended": "suspended", "cancelled": AT_SOURCE},
    "suspended": {"resumed": "resumed", "fault-injected": "broken", "cancelled": AT_SOURCE},
    "broken": {"cancelled": AT_SOURCE},
    "resumed": {"migrated": AT_SOURCE},
}
"""After `migrated` the destination is the source of the next leg."""

SIDES = {
    "migrate-started": "controller",
    "kept-out": "destination",
    "suspended": "source",
    "resumed": "destination",
    "fault-injected": "destination",
    "migrated": "controller",
    "cancelled": "controller",
}
"""The side that a controller's event is about. A record may name the controller for all of them."""

NEW, GONE = "not attached", "detached"
SHIM: Table = {
    NEW: {"attached": "attached"},
    "attached": {
        "opened": "open", "activated": "open", "refused": "attached", "detached": GONE,
    },
    "open": {
        "first-request": "open", "first-write": "open", "allocated": "open",
        "opened": "open", "activated": "open", "refused": "open", "fenced": "fenced",
        "paused": "paused", "deactivated": "attached", "closed": "closed",
    },
    "paused": {
        "unpaused": "open", "refused": "paused", "deactivated": "attached", "closed": "closed",
    },
    "fenced": {
        "refused": "fenced", "paused": "fenced", "deactivated": "attached", "closed": "closed",
    },
    "closed": {"detached": GONE},
    GONE: {"attached": "attached"},
}  # fmt: skip
"""`opened` in state open is a reopen for a guest's request, and has `implicit`."""

GUEST_CAUSED = frozenset({"allocated", "first-request", "first-write", "fenced"})
"""Events that a shim sends because of a request of the guest, not of the controller."""


def is_operation(event: Event) -> bool:
    """Whether an event answers an operation of the controller, or is the controller's own."""
    implicit = event.extra.get("implicit") is True or event.extra.get("op") == "request"
    return event.name not in GUEST_CAUSED and not implicit


def cite(event: Event) -> str:
    """Names an event in a message. `seq` is the number of its line."""
    return f"events.jsonl, line {event.seq} (`{event.name}`)"
