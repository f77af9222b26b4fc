"""The consoles, against the hosts, events and times: the guest prints on the host where it runs.

The chunks of the consoles and the controller's own events have times of one clock, the
controller's, and only these are compared. A chunk may arrive up to LATE seconds late. It never
arrives early, and never from a host on which the guest cannot be.
"""

import re
from collections.abc import Iterator, Sequence

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import Ack, Console
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.grammar import cite
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.evidence.load import schedule_of
from vhdtool.oracle.evidence.record import Chunk, Record
from vhdtool.oracle.evidence.schedule import Schedule
from vhdtool.oracle.finding import Finding, doubt

LATE = 5.0
"""Seconds that a chunk or an event may take to reach the controller."""
DEPTH = 64
"""Writes in flight, or blocks allocated ahead of them, at any moment; at most."""
PANIC = re.compile(rb"Oops\b|BUG:|Kernel panic|general protection")


def check_consoles(
    record: Record, console: Console, legs: Sequence[Leg], allocated: dict[int, Event]
) -> list[Finding]:
    """Doubts only. `allocated`: block of the load -> the event that reports its allocation."""
    case, events = record.case, record.events
    findings = [*_unlisted_logs(record)]
    if case is None:
        return findings
    findings += _hosts(record.console, case)
    findings += _clock(record.console)
    if events.complete and case.first_hosts and console.started:
        findings += _guest_host(record.console, case.first_hosts[0], legs)
        if allocated:
            load = schedule_of(case)
            findings += check_acknowledging_hosts(console.acks, load, allocated, legs)
            findings += check_pace(console.acks, load, allocated, events)
    return findings


def _unlisted_logs(record: Record) -> Iterator[Finding]:
    for host, data in record.unlisted_logs.items():
        match = PANIC.search(data)
        what = f", with `{match[0].decode()}` in it" if match else ""
        text = f"console-{host}.log has {len(data)} bytes{what}; console.jsonl does not list it"
        yield doubt("console-unnamed", text)


def _hosts(chunks: Sequence[Chunk], case: Case) -> Iterator[Finding]:
    for host in dict.fromkeys(chunk.host for chunk in chunks):
        if host not in case.hosts:
            first = next(chunk.line for chunk in chunks if chunk.host == host)
            text = f"console.jsonl, line {first}: case.json has no host {host}"
            yield doubt("console-host", text)


def _clock(chunks: Sequence[Chunk]) -> Iterator[Finding]:
    """The times of one host never fall; those of all hosts by at most a second."""
    newest: dict[str, float] = {}
    latest = None
    for chunk in chunks:
        before = newest.get(chunk.host)
        earlier = latest is not None and chunk.mono < latest - 1
        if (before is not None and chunk.mono < before) or earlier:
            text = f"console.jsonl, line {chunk.line}: its time is before that of earlier lines"
            yield doubt("console-time", text)
            return
        newest[chunk.host] = chunk.mono
        latest = chunk.mono if latest is None else max(latest, chunk.mono)


def _guest_host(chunks: Sequence[Chunk], source: str, legs: Sequence[Leg]) -> Iterator[Finding]:
    """Compares each chunk with the times at which the guest can have been on its host."""
    stays: dict[str, list[tuple[float, float]]] = {source: [(-1e300, 1e300)]}
    reason: dict[str, Event] = {}
    for leg in legs:
        if not leg.moved or leg.suspended is None or leg.resumed is None:
            continue
        here, there = leg.source, leg.destination
        begin = stays[here].pop()[0] if stays.get(here) else -1e300
        stays.setdefault(here, []).append((begin, leg.resumed.mono + LATE))
        stays.setdefault(there, []).append((leg.suspended.mono, 1e300))
        reason[here], reason[there] = leg.resumed, leg.suspended
    for chunk in chunks:
        spans = stays.get(chunk.host)
        if spans is None:
            text = f"console.jsonl, line {chunk.line}: output of the guest on {chunk.host}, "
            yield doubt("console-place", text + "to which no leg moved it")
            return
        if not any(begin <= chunk.mono <= end for begin, end in spans):
            event = reason.get(chunk.host)
            near = f"; {cite(event)} is at {event.mono:.3f}" if event else ""
            text = f"console.jsonl, line {chunk.line}: output of the guest on {chunk.host} at "
            yield doubt("console-place", f"{text}{chunk.mono:.3f}, when it ran elsewhere{near}")
            return


def check_acknowledging_hosts(
    acks: Sequence[Ack], load: Schedule, allocated: dict[int, Event], legs: Sequence[Leg]
) -> Iterator[Finding]:
    """A write that allocated a block is acknowledged on the host whose shim reports the block.

    A write in flight when the guest moved may be acknowledged at the destination.
    """
    moves = {(one.source, one.destination) for one in legs if one.moved}
    crossed: dict[tuple[str, str], int] = {}
    for ack in acks:
        event = _allocation_of(ack.n, load, allocated)
        if event is None or event.host == ack.host:
            continue
        pair = (event.host, ack.host)
        crossed[pair] = crossed.get(pair, 0) + 1
        if pair not in moves or crossed[pair] > DEPTH:
            text = f"write {ack.n} was acknowledged on {ack.host}'s console, but its block was "
            yield doubt("console-shim", f"{text}allocated at {event.host}: {cite(event)}")
            return


def _allocation_of(n: int, load: Schedule, allocated: dict[int, Event]) -> Event | None:
    """The allocation of a write that was the first to its block."""
    if n % 2 or n // 2 >= len(load.order):
        return None
    return allocated.get(load.order[n // 2])


def check_pace(
    acks: Sequence[Ack], load: Schedule, allocated: dict[int, Event], events: Events
) -> Iterator[Finding]:
    """Every second write allocates a block, so at each controller event blocks count the writes.

    The controller stamps both. They may differ by what had not reached it yet, and by the writes
    in flight.
    """
    paced = set(load.order)
    blocks = sorted(event.seq for block, event in allocated.items() if block in paced)
    times = [ack.mono for ack in acks]
    for event in events.items:
        if event.pid is not None:
            continue
        made = sum(seq < event.seq for seq in blocks)
        by_then = sum(at <= event.mono + LATE for at in times)
        long_before = sum(at < event.mono - LATE for at in times)
        if by_then < min(2 * made - 2 * DEPTH, len(times)):
            text = f"console.jsonl has only {by_then} acknowledgements {LATE:.0f} s after "
            text += f"{cite(event)}, when {made} blocks had been allocated"
        elif made < len(load.order) - DEPTH and long_before > 2 * made + 2 * DEPTH:
            text = f"console.jsonl has {long_before} acknowledgements {LATE:.0f} s before "
            text += f"{cite(event)}, when only {made} blocks had been allocated"
        else:
            continue
        yield doubt("console-time", text)
        return
