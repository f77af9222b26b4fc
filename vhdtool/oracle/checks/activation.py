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

from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.events import FIRSTS, READS, RELEASES, Event, Events
from vhdtool.oracle.finding import Finding, Outcome, doubt

MANY = 1000
"""Overlaps after which no more pairs are listed."""


@dataclass
class Reading:
    """One metadata read of one process, and what came of it."""

    event: Event
    epoch: int
    first: Event | None = None
    """The first request that was served on it."""
    first_write: Event | None = None
    release: Event | None = None
    next_read: Event | None = None

    @property
    def active(self) -> bool:
        holds = self.event.name == "activated" and self.event.extra.get("lease") is not False
        return self.first is not None or holds

    @property
    def end(self) -> int | None:
        """The epoch at which it ended, or None where no event says so."""
        if self.release is not None:
            return self.release.epoch
        return None if self.next_read is None else self.next_read.epoch


@dataclass(frozen=True)
class ActivationOutcome(Outcome):
    """With the figures of verdict.json; `margin_ms` None where no destination served a request."""

    overlap_epochs: int = 0
    margin_ms: float | None = None
    readings: tuple[Reading, ...] = ()


def judge_activation(events: Events, attempts: list[Attempt], guard: bool) -> ActivationOutcome:
    """Reads nothing but the events."""
    findings = [doubt("events", problem) for problem in events.problems]
    readings, strays = _readings(events)
    active = sorted((one for one in readings if one.active), key=lambda one: one.epoch)
    end = max((event.epoch or 0 for event in events.items), default=0) + 1
    open_end = end if events.complete else None
    overlaps = list(_overlaps(active, open_end))
    findings += overlaps
    if events.complete:
        findings += strays
        findings += _order(events, readings)
        findings += _coverage(attempts, active)
        findings += _guard(events, active, guard)
    return ActivationOutcome(
        tuple(findings), _measure(active, open_end), _margin(attempts, readings), tuple(readings)
    )


def _readings(events: Events) -> tuple[list[Reading], list[Finding]]:
    """All reads, and doubts about events that belong to none of them."""
    by_process: dict[str, list[Reading]] = {}
    stray: list[Finding] = []
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
        # A shim that reopens for every request tells of the first reopen only.
        match = [r for r in mine if r.epoch == epoch or (event.who in unlisted and r.epoch < epoch)]
        if not match:
            text = f"{event.who}: `{event.name}` names the read at epoch {epoch}, which is unknown"
            stray.append(doubt("unknown-read", text))
        elif event.name in RELEASES:
            match[-1].release = event
        elif match[-1].release is not None:
            text = f"{event.who}: a request was served on epoch {epoch} after its release"
            stray.append(doubt("served-after-release", text))
        else:
            match[-1].first = match[-1].first or event
            if event.name == "first-write":
                match[-1].first_write = match[-1].first_write or event
    return [one for mine in by_process.values() for one in mine], stray


def _end(one: Reading, open_end: int | None) -> int | None:
    """The end that is proved: by a release; by anything else only when no event is missing."""
    if one.release is not None:
        return one.end
    return None if open_end is None else one.end or open_end


def _overlaps(active: list[Reading], open_end: int | None) -> Iterator[Finding]:
    """`active` rises in epoch."""
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
                f"{_name(other)} was active from epoch {other.epoch} to {_told(other)}, and "
                f"{_name(one)} from epoch {one.epoch} to {_told(one)}: both at once"
            )
            yield Finding(
                "activation-overlap", text, epochs=(one.epoch, until),
                who=(other.event.who, one.event.who),
            )  # fmt: skip
        current.append(one)


def _name(one: Reading) -> str:
    return f"{one.event.host} (pid {one.event.pid})"


def _told(one: Reading) -> str:
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
    """Epochs are an order only while no number is given twice and each process sees them rise."""
    owner: dict[int, Event] = {}
    newest: dict[str, int] = {}
    for event in events.items:
        if event.name not in READS | RELEASES or event.epoch is None:
            continue
        if event.epoch in owner:
            text = f"epoch {event.epoch} was given to {owner[event.epoch].who} and to {event.who}"
            yield doubt("epoch-twice", text)
        owner[event.epoch] = event
        if event.epoch <= newest.get(event.who, 0):
            text = f"{event.who} saw epoch {event.epoch} after {newest[event.who]}"
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
            text = f"{_name(one)} released epoch {one.epoch} at epoch {one.release.epoch}"
            yield doubt("epoch-falls", text)


def _coverage(attempts: list[Attempt], active: list[Reading]) -> Iterator[Finding]:
    """An activation that must have been, or the oracle has looked at nothing."""
    if not attempts:
        yield doubt("nothing-started", "no event tells of a migration")
        return
    if not any(one.event.seq < attempts[0].started.seq for one in active):
        yield doubt("no-source", "no host was active before the migration started")
    for attempt in attempts:
        if attempt.moved and not _served(attempt, active):
            text = f"leg {attempt.leg} migrated, but no request was served at its destination"
            yield doubt("no-destination", text)


def _served(attempt: Attempt, readings: list[Reading]) -> Reading | None:
    """The read on which the destination of an attempt served its first request."""
    served = [
        one
        for one in readings
        if one.first is not None
        and one.event.host == attempt.destination
        and one.event.leg == attempt.leg
    ]
    return min(served, key=lambda one: one.epoch, default=None)


def _guard(events: Events, active: list[Reading], guard: bool) -> Iterator[Finding]:
    for event in events.named("fenced"):
        reason = str(event.extra.get("reason", "no reason"))[:200]
        yield doubt("fenced", f"{event.who} fenced itself: {reason}")
    for one in active:
        if guard and one.event.name == "opened" and one.first is not None:
            text = f"{_name(one)} served a request on epoch {one.epoch}, read without the lease"
            yield doubt("no-lease", text)


def _margin(attempts: list[Attempt], readings: list[Reading]) -> float | None:
    """Milliseconds from the source's last metadata write to the destination's read; the least."""
    margins = []
    for attempt in attempts:
        served = _served(attempt, readings)
        writes = [
            mono
            for one in readings
            if one.event.host == attempt.source and one.release is not None
            and one.release.leg == attempt.leg
            and (mono := one.release.number("last_metadata_mono")) is not None
        ]  # fmt: skip
        read = served.event.number("read_mono") if served else None
        if attempt.moved and read is not None and writes:
            margins.append((read - max(writes)) * 1000)
    return round(min(margins), 3) if margins else None
