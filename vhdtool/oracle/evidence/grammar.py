"""The grammar of events: which may follow which, in the life of a leg and in that of a shim.

Both are tables {state: {event: next state}}; docs/verdicts.md prints them. A leg is told by the
controller, one event after the other. A shim is one process of one host; the events of one shim
are in the order in which they happened, those of two shims only where an operation of one was
asked for after the other had answered.
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
"""Which side a controller's event is about. Records may name the controller for all of them."""

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
"""`opened` in state open is a reopen for a request, and says `implicit`."""

ANYTIME = frozenset({"allocated", "first-request", "first-write", "fenced"})
"""A shim tells these when the guest asks for something, and not when the controller does."""


def is_step(event: Event) -> bool:
    """Whether an event answers an operation of the controller, or is one of its own."""
    implicit = event.extra.get("implicit") is True or event.extra.get("op") == "request"
    return event.name not in ANYTIME and not implicit


def line(event: Event) -> str:
    """Where an event stands, in words. `seq` is the number of its line."""
    return f"events.jsonl, line {event.seq} (`{event.name}`)"
