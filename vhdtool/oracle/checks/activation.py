"""The activation oracle: never two hosts active at once, proved from epochs alone.

Every metadata read and every release took the next number of one counter on the shared storage,
so epochs order them across hosts without comparing clocks. An activation is a read on which a
request was served, or that took the lease; it ends at its release, or at the same process's next
read. An overlap is proved when the later read lies before the release that *names* the earlier
one. An activation without an end counts as open only while no event is missing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from vhdtool.oracle.evidence.events import FIRSTS, READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.finding import Finding, Outcome, doubt

MANY = 1000
"""Overlaps that are listed at most."""


@dataclass
class Reading:
    """One metadata read of one process, with the requests served on it and its release."""

    event: Event
    epoch: int
    first: Event | None = None
    """The first request served on it."""
    first_write: Event | None = None
    release: Event | None = None
    next_read: Event | None = None

    @property
    def active(self) -> bool:
        holds = self.event.name == "activated" and self.event.extra.get("lease") is not False
        return self.first is not None or holds

    @property
    def end(self) -> int | None:
        """The epoch at which it ended, or None without an event of its end."""
        if self.release is not None:
            return self.release.epoch
        return None if self.next_read is None else self.next_read.epoch


@dataclass(frozen=True)
class ActivationOutcome(Outcome):
    """With the figures of verdict.json. `margin_ms`: None if no destination served a request."""

    overlap_epochs: int = 0
    margin_ms: float | None = None
    readings: tuple[Reading, ...] = ()


def check_activation(events: Events, legs: list[Leg], guard: bool) -> ActivationOutcome:
    """Judges from the events alone."""
    findings = [doubt("events", problem) for problem in events.problems]
    readings, unmatched = _readings(events)
    active = sorted((one for one in readings if one.active), key=lambda one: one.epoch)
    end = max((event.epoch or 0 for event in events.items), default=0) + 1
    open_end = end if events.complete else None
    overlaps = list(_overlaps(active, open_end))
    findings += overlaps
    if events.complete:
        findings += unmatched
        findings += _order(events, readings)
        findings += _missing_activations(legs, active)
        findings += _guard(events, active, guard)
    return ActivationOutcome(
        tuple(findings), _measure(active, open_end), _margin(legs, readings), tuple(readings)
    )


def _readings(events: Events) -> tuple[list[Reading], list[Finding]]:
    """All metadata reads, and doubts about events that belong to none of them."""
    by_process: dict[str, list[Reading]] = {}
    unmatched: list[Finding] = []
    unlisted = {e.who for e in events.items if e.extra.get("mode") == "each"}
    unlisted |= {e.who for e in events.items if "reopens" in e.extra}
    for event in events.items:
        mine = by_process.setdefault(event.who, [])
        if event.name in READS:
            assert event.epoch is not None
            if mine:
                mine[-1].next_read = event
            mine.append(Reading(event, event.epoch))
            continue
        if event.name not in RELEASES | FIRSTS:
            continue
        epoch = event.integer("ended") if event.name in RELEASES else event.epoch
        if epoch is None:
            continue
        # A shim that reopens for every request reports the first reopen only.
        match = [r for r in mine if r.epoch == epoch or (event.who in unlisted and r.epoch < epoch)]
        if not match:
            text = f"{event.who}: `{event.name}` names a metadata read at epoch {epoch}, which "
            unmatched.append(doubt("unknown-read", text + "no event reports"))
        elif event.name in RELEASES:
            match[-1].release = event
        elif match[-1].release is not None:
            text = f"{event.who}: a request was served on the metadata read at epoch {epoch} after "
            unmatched.append(doubt("served-after-release", text + "its release"))
        else:
            match[-1].first = match[-1].first or event
            if event.name == "first-write":
                match[-1].first_write = match[-1].first_write or event
    return [one for mine in by_process.values() for one in mine], unmatched


def _end(one: Reading, open_end: int | None) -> int | None:
    """The epoch of the proved end: of the release; of anything else only if no event is missing."""
    if one.release is not None:
        return one.end
    return None if open_end is None else one.end or open_end


def _overlaps(active: list[Reading], open_end: int | None) -> Iterator[Finding]:
    """One finding for each pair. `active` rises in epoch."""
    current: list[Reading] = []
    found = 0
    for one in active:
        current = [other for other in current if (_end(other, open_end) or 0) > one.epoch]
        for other in current:
            if other.event.who == one.event.who or found >= MANY:
                continue
            found += 1
            until = min(_end(other, open_end) or 0, _end(one, open_end) or 1 << 62)
            text = (
                f"{_name(other)} was active from epoch {other.epoch} to {_end_text(other)}, and "
                f"{_name(one)} from epoch {one.epoch} to {_end_text(one)}: both at once"
            )
            yield Finding(
                "activation-overlap", text, epochs=(one.epoch, until),
                who=(other.event.who, one.event.who),
            )  # fmt: skip
        current.append(one)


def _name(one: Reading) -> str:
    return f"{one.event.host} (pid {one.event.pid})"


def _end_text(one: Reading) -> str:
    return "the end" if one.end is None else str(one.end)


def _measure(active: list[Reading], open_end: int | None) -> int:
    """Epochs at which two processes or more were active."""
    steps: list[tuple[int, int]] = []
    for one in active:
        end = _end(one, open_end)
        if end is not None and end > one.epoch:
            steps += [(one.epoch, 1), (end, -1)]
    total = depth = since = 0
    for epoch, step in sorted(steps):
        if depth >= 2:
            total += epoch - since
        depth, since = depth + step, epoch
    return total


def _order(events: Events, readings: list[Reading]) -> Iterator[Finding]:
    """Epochs are an order only if no number is used twice and the epochs of each process rise."""
    owner: dict[int, Event] = {}
    newest: dict[str, int] = {}
    for event in events.items:
        if event.name not in READS | RELEASES or event.epoch is None:
            continue
        if event.epoch in owner:
            text = f"epoch {event.epoch} was taken by {owner[event.epoch].who} and by {event.who}"
            yield doubt("epoch-twice", text)
        owner[event.epoch] = event
        if event.epoch <= newest.get(event.who, 0):
            text = f"{event.who} took epoch {event.epoch} after {newest[event.who]}"
            yield doubt("epoch-falls", text)
        newest[event.who] = event.epoch
    legs: dict[int, list[int]] = {}
    for one in readings:
        legs.setdefault(one.event.leg, []).append(one.epoch)
    numbers = sorted(legs)
    for before, after in itertools.pairwise(numbers):
        if max(legs[before]) >= min(legs[after]):
            yield doubt("epoch-falls", f"epochs do not rise from leg {before} to leg {after}")
    for one in readings:
        if one.release is not None and (one.release.epoch or 0) <= one.epoch:
            text = f"{_name(one)} read at epoch {one.epoch}, and released at {one.release.epoch}"
            yield doubt("epoch-falls", text)


def _missing_activations(legs: list[Leg], active: list[Reading]) -> Iterator[Finding]:
    """Activations that every migration has; without them the oracle has judged nothing."""
    if not legs:
        yield doubt("nothing-started", "the events have no `migrate-started`")
        return
    if not any(one.event.seq < legs[0].started.seq for one in active):
        yield doubt("no-source", "no host was active before the migration started")
    for leg in legs:
        if leg.moved and not _served(leg, active):
            text = f"leg {leg.number} migrated, but no request was served at its destination"
            yield doubt("no-destination", text)


def _served(leg: Leg, readings: list[Reading]) -> Reading | None:
    """The read on which the destination of a leg served its first request."""
    served = [
        one
        for one in readings
        if one.first is not None
        and one.event.host == leg.destination
        and one.event.leg == leg.number
    ]
    return min(served, key=lambda one: one.epoch, default=None)


def _guard(events: Events, active: list[Reading], guard: bool) -> Iterator[Finding]:
    for event in events.named("fenced"):
        yield doubt("fenced", f"{event.who} fenced itself: {event.reason}")
    for one in active:
        if guard and one.event.name == "opened" and one.first is not None:
            text = f"{_name(one)} served a request without the lease, after its metadata read "
            yield doubt("no-lease", f"{text}at epoch {one.epoch}")


def _margin(legs: list[Leg], readings: list[Reading]) -> float | None:
    """Milliseconds from the source's last metadata write to the destination's read: the minimum."""
    margins = []
    for leg in legs:
        served = _served(leg, readings)
        writes = [
            mono
            for one in readings
            if one.event.host == leg.source and one.release is not None
            and one.release.leg == leg.number
            and (mono := one.release.number("last_metadata_mono")) is not None
        ]  # fmt: skip
        read = served.event.number("read_mono") if served else None
        if leg.moved and read is not None and writes:
            margins.append((read - max(writes)) * 1000)
    return round(min(margins), 3) if margins else None
