"""The consoles against hosts, events and times: what the guest said, it said where it ran.

Bytes of the consoles and the controller's own events are stamped by one clock, the controller's,
and only those two are compared. Bytes may be on their way for a while, so they may come late by
LATE; they never come early, and they never come from a host on which the guest cannot be.
"""

import re
from collections.abc import Iterator, Sequence

from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import Ack, Console
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.grammar import line
from vhdtool.oracle.evidence.load import schedule_of
from vhdtool.oracle.evidence.record import Chunk, Record
from vhdtool.oracle.evidence.schedule import Schedule
from vhdtool.oracle.finding import Finding, doubt

LATE = 5.0
"""Seconds that bytes or events may be on their way to the controller."""
DEPTH = 64
"""Writes that may be under way, or blocks placed ahead of them, at any moment."""
PANIC = re.compile(rb"Oops\b|BUG:|Kernel panic|general protection")


def talk(
    record: Record, console: Console, attempts: Sequence[Attempt], told: dict[int, Event]
) -> list[Finding]:
    """`told`: blocks by the event that told of their allocation. Doubts only."""
    case, events = record.case, record.events
    findings = [*_unnamed(record)]
    if case is None:
        return findings
    findings += _hosts(record.console, case)
    findings += _clock(record.console)
    if events.complete and case.first_hosts and console.started:
        findings += _where(record.console, case.first_hosts[0], attempts)
        if told:
            load = schedule_of(case)
            findings += _through(console.acks, load, told, attempts)
            findings += _pace(console.acks, load, told, events)
    return findings


def _unnamed(record: Record) -> Iterator[Finding]:
    for host, data in record.unnamed.items():
        match = PANIC.search(data)
        what = f", with `{match[0].decode()}` in it" if match else ""
        text = f"console-{host}.log has {len(data)} bytes{what}; console.jsonl tells of none"
        yield doubt("console-unnamed", text)


def _hosts(chunks: Sequence[Chunk], case: Case) -> Iterator[Finding]:
    for host in dict.fromkeys(chunk.host for chunk in chunks):
        if host not in case.hosts:
            first = next(chunk.line for chunk in chunks if chunk.host == host)
            text = f"console.jsonl, line {first}: {host} is no host of case.json"
            yield doubt("console-host", text)


def _clock(chunks: Sequence[Chunk]) -> Iterator[Finding]:
    """One process stamps both consoles; of one host strictly in order."""
    newest: dict[str, float] = {}
    latest = None
    for chunk in chunks:
        before = newest.get(chunk.host)
        behind = latest is not None and chunk.mono < latest - 1
        if (before is not None and chunk.mono < before) or behind:
            text = f"console.jsonl, line {chunk.line}: stamped before the lines above it"
            yield doubt("console-time", text)
            return
        newest[chunk.host] = chunk.mono
        latest = chunk.mono if latest is None else max(latest, chunk.mono)


def _where(chunks: Sequence[Chunk], source: str, attempts: Sequence[Attempt]) -> Iterator[Finding]:
    """Which hosts may have said something, and from when until when by the controller's clock."""
    stays: dict[str, list[tuple[float, float]]] = {source: [(-1e300, 1e300)]}
    reason: dict[str, Event] = {}
    for attempt in attempts:
        if not attempt.moved or attempt.suspended is None or attempt.resumed is None:
            continue
        here, there = attempt.source, attempt.destination
        begin = stays[here].pop()[0] if stays.get(here) else -1e300
        stays.setdefault(here, []).append((begin, attempt.resumed.mono + LATE))
        stays.setdefault(there, []).append((attempt.suspended.mono, 1e300))
        reason[here], reason[there] = attempt.resumed, attempt.suspended
    for chunk in chunks:
        spans = stays.get(chunk.host)
        if spans is None:
            text = f"console.jsonl, line {chunk.line}: the guest speaks on {chunk.host}, "
            yield doubt("console-place", text + "to which no leg brought it")
            return
        if not any(begin <= chunk.mono <= end for begin, end in spans):
            event = reason.get(chunk.host)
            near = f"; {line(event)} is at {event.mono:.3f}" if event else ""
            text = f"console.jsonl, line {chunk.line}: the guest speaks on {chunk.host} at "
            yield doubt("console-place", f"{text}{chunk.mono:.3f}, when it was not there{near}")
            return


def _through(
    acks: Sequence[Ack], load: Schedule, told: dict[int, Event], attempts: Sequence[Attempt]
) -> Iterator[Finding]:
    """A write that made a block is acknowledged on the host whose shim told of the block.

    Those that were under way when the guest moved may be acknowledged where it went.
    """
    moves = {(one.source, one.destination) for one in attempts if one.moved}
    crossed: dict[tuple[str, str], int] = {}
    for ack in acks:
        event = _made(ack.n, load, told)
        if event is None or event.host == ack.host:
            continue
        pair = (event.host, ack.host)
        crossed[pair] = crossed.get(pair, 0) + 1
        if pair not in moves or crossed[pair] > DEPTH:
            text = f"write {ack.n} was acknowledged on {ack.host}'s console, and {line(event)} "
            yield doubt("console-shim", text + f"made its block at {event.host}")
            return


def _made(n: int, load: Schedule, told: dict[int, Event]) -> Event | None:
    """The allocation of a write that was the first to its block."""
    if n % 2 or n // 2 >= len(load.order):
        return None
    return told.get(load.order[n // 2])


def _pace(
    acks: Sequence[Ack], load: Schedule, told: dict[int, Event], events: Events
) -> Iterator[Finding]:
    """Every second write makes a block, so blocks count writes, at each of the controller's events.

    Both sides come to the controller and are stamped by it; they may differ by what was on its
    way and what was under way.
    """
    paced = set(load.order)
    blocks = sorted(event.seq for block, event in told.items() if block in paced)
    times = [ack.mono for ack in acks]
    for event in events.items:
        if event.pid is not None:
            continue
        made = sum(seq < event.seq for seq in blocks)
        by_then = sum(at <= event.mono + LATE for at in times)
        long_before = sum(at < event.mono - LATE for at in times)
        if by_then < min(2 * made - 2 * DEPTH, len(times)):
            text = f"console.jsonl has {by_then} acknowledgements {LATE:.0f} s after "
            text += f"{line(event)}, where {made} blocks had been made"
        elif made < len(load.order) - DEPTH and long_before > 2 * made + 2 * DEPTH:
            text = f"console.jsonl has {long_before} acknowledgements {LATE:.0f} s before "
            text += f"{line(event)}, where only {made} blocks had been made"
        else:
            continue
        yield doubt("console-time", text)
        return
