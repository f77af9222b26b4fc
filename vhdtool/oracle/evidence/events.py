"""events.jsonl: each line as a typed event, and the problems of the file.

A line that cannot be parsed does not invalidate the others: they still prove what they say. But no
oracle may then conclude anything from an event that is absent (`Events.complete`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.json_fields import TornRecord

READS = frozenset({"opened", "activated", "unpaused"})
"""A shim read footer, header and BAT, at `epoch` and `read_mono`."""
RELEASES = frozenset({"paused", "closed", "deactivated"})
"""A shim closed the image, at `epoch`; `ended` is the epoch of the read that this ends."""
FIRSTS = frozenset({"first-request", "first-write"})
"""The first request, or the first write, that was served on the metadata read at `epoch`."""
CONTROLLER = frozenset(
    {
        "migrate-started", "suspended", "resumed", "migrated", "cancelled", "fault-injected",
        "kept-out",
    }
)  # fmt: skip
KNOWN = (
    READS | RELEASES | FIRSTS | CONTROLLER | {"attached", "detached", "allocated", "refused"}
) | {"fenced"}
SIDES = ("source", "destination", "controller")
CONTROLLER_HOST = "controller"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `mono` is in seconds; `epoch` is a number of the counter beside the image."""

    seq: int
    name: str
    leg: int
    host: str
    side: str
    pid: int | None
    epoch: int | None
    mono: float
    extra: Mapping[str, object]

    @property
    def who(self) -> str:
        """The process: "host:pid"."""
        return f"{self.host}:{self.pid}"

    @property
    def reason(self) -> str:
        """The reason that the event states, on one line."""
        return strict.one_line(self.extra.get("reason", "no reason given"))

    def number(self, key: str) -> float | None:
        """A number among the fields of this kind of event, or None."""
        value = self.extra.get(key)
        return float(value) if isinstance(value, int | float) else None

    def integer(self, key: str) -> int | None:
        """An integer among the fields of this kind of event, or None."""
        value = self.extra.get(key)
        return value if isinstance(value, int) else None


@dataclass(frozen=True)
class Events:
    """Events in the order of `seq`, and the reasons why some may be missing."""

    items: tuple[Event, ...]
    problems: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.problems

    @property
    def last_seq(self) -> int:
        return self.items[-1].seq if self.items else 0

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.items if event.name in names]


def parse_events(data: bytes, hosts: tuple[str, ...] | None) -> Events:
    """Parses events.jsonl. `hosts`: the hosts of the case; None accepts any name."""
    found: list[Event] = []
    problems: list[str] = []
    *lines, rest = data.split(b"\n")
    if rest:
        problems.append("events.jsonl is torn: its last line is not terminated")
    for number, line in enumerate(lines, 1):
        try:
            found.append(_event(strict.parse_object(line), hosts))
        except TornRecord as error:
            problems.append(f"events.jsonl, line {number}: {error}")
    for number, event in enumerate(found, 1):
        if not problems and event.seq != number:
            problems.append(f"events.jsonl, line {number}: its seq is {event.seq}")
    if not lines:
        problems.append("events.jsonl is empty")
    return Events(tuple(sorted(found, key=lambda event: event.seq)), tuple(problems))


def _event(line: strict.Object, hosts: tuple[str, ...] | None) -> Event:
    name, side, host = (strict.text(line, key) for key in ("event", "side", "host"))
    if name not in KNOWN:
        raise TornRecord(f"unknown event {name[:40]!r}")
    if side not in SIDES:
        raise TornRecord(f"unknown side {side[:40]!r}")
    if hosts is not None and host not in (*hosts, CONTROLLER_HOST):
        raise TornRecord(f"unknown host {host[:40]!r}")
    event = Event(
        seq=strict.integer(line, "seq", 1),
        name=name,
        leg=strict.integer(line, "leg", 0, 1000),
        host=host,
        side=side,
        pid=strict.optional_integer(line, "pid"),
        epoch=strict.optional_integer(line, "epoch"),
        mono=strict.number(line, "mono"),
        extra=line,
    )
    strict.number(line, "wall")
    _own_fields(event, line)
    return event


def _own_fields(event: Event, line: strict.Object) -> None:
    """Checks the fields of a kind of event that the oracles use."""
    strict.optional_number(line, "began_mono")
    if event.name in READS:
        strict.integer(line, "epoch", 1)
        strict.number(line, "read_mono")
    elif event.name in FIRSTS:
        strict.integer(line, "epoch", 1)
    elif event.name == "allocated":
        for key in ("epoch", "block", "sector"):
            strict.integer(line, key)
    elif event.name in RELEASES:
        strict.optional_number(line, "last_metadata_mono")
        ended = strict.optional_integer(line, "ended")
        if "ended" not in line or (ended is not None and event.epoch is None):
            raise TornRecord(f"{event.name!r} needs `ended` and, unless that is null, `epoch`")
    elif event.name in CONTROLLER:
        strict.optional_number(line, "stop_mono")
        strict.optional_number(line, "completed_mono")
    if event.name in READS | FIRSTS | RELEASES | {"allocated"}:
        strict.integer(line, "pid", 1)
        if event.side == CONTROLLER_HOST:
            raise TornRecord(f"{event.name!r} cannot be an event of the controller")
