"""Faults in copies of the consoles: other lines, other hosts, other times."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import lines_of, read_console
from vhdtool.oracle.evidence.grammar import cite
from vhdtool.oracle.evidence.record import Chunk
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.fault import Fault, finds

DAY = 86400.0
FEW = 80
UNKNOWN_HOST = "unknown-host"
SHORT = 21
"""Lines of a shortened console, which is parsed often: `start`, and twenty writes."""


def console_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Consoles that contradict themselves, case.json, the events or the disk.

    The image is left out, because it would be read each time and no fault is about its data.
    """
    record, case = evidence.record, evidence.record.case
    if case is None or not record.console or outcomes.content.of_severity("doubt"):
        return
    chunks = [
        replace(chunk, data=line + b"\n") for line, chunk in lines_of(record.console)
    ]  # fmt: skip
    yield from _lines(evidence, chunks, case)
    yield from _times(evidence, chunks)
    moved = [one for one in evidence.legs if one.moved and one.suspended and one.resumed]
    if moved:
        yield from _moved(evidence, chunks)
    if evidence.allocations.units.of_load:
        yield from _paced(evidence, chunks)


def _with_console(
    evidence: Evidence, chunks: list[Chunk], unlisted: Mapping[str, bytes] | None = None
) -> Evidence:
    """The same record with another console, and without the image."""
    record = replace(evidence.record, console=tuple(chunks), unlisted_logs=unlisted or {})
    return replace(evidence, record=record, console=read_console(chunks, ()), view=None)


def _lines(evidence: Evidence, chunks: list[Chunk], case: Case) -> Iterator[Fault]:
    """Additional lines of the guest and of its kernel, and logs of unknown hosts."""
    console = evidence.console
    end = chunks[-1]
    issued = console.issued or 0
    wrong = (console.bad_total or 0) + 7
    sector = case.image_bytes // 512 - 1
    tail = (
        f"readback bad 0 {sector}\nerror {issued - 1} 5\n"
        f"blk_update_request: I/O error, dev vda, sector {sector}\n"
        f"readback done {console.checked} {wrong}\n"
    )
    more = [*chunks, replace(end, data=tail.encode())]
    foreign = Chunk(UNKNOWN_HOST, end.mono, b"ready\n", end.line + 7)
    logs = {UNKNOWN_HOST: b"Kernel panic", "gone": b"x"}
    faulty = _with_console(evidence, [*more, foreign], logs)
    for name, code, texts in (
        ("readback-bad", "readback-bad", (f"sector {sector},",)),
        ("readback-bad-count", "readback-bad", (f"read back {wrong} of",)),
        ("readback-twice", "console", ("after `readback done`",)),
        ("io-error", "io-error", ("errno 5",)),
        ("kernel-io-error", "console", ("kernel reports I/O errors",)),
        ("unknown-host", "console-host", (f"line {foreign.line}:", UNKNOWN_HOST)),
        ("output-elsewhere", "console-place", (f"line {foreign.line}:", "to which no leg")),
        ("unlisted-panic", "console-unnamed", (UNKNOWN_HOST, "panic")),
        ("unlisted-log", "console-unnamed", ("console-gone.log",)),
    ):
        yield Fault("content", name, faulty, finds(code, *texts))
    yield from _torn(evidence, _short(chunks))


def _short(chunks: list[Chunk]) -> list[Chunk]:
    """The first lines of the load and the last two: enough for a line out of sequence."""
    kinds = (b"start ", b"acked ", b"stopped ", b"readback done ")
    lines = [chunk for chunk in chunks if chunk.data.startswith(kinds)]
    return [*lines[:SHORT], *lines[-2:]]


def _torn(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """One line of the guest missing, repeated or changed."""
    issued = SHORT - 1
    case = evidence.record.case
    other = 8 if case is not None and case.seed == 9 else 9
    chunks = _replaced(chunks, b"stopped ", f"stopped {issued}\n".encode()) or chunks
    half, last = b"acked 7\n", f"acked {issued - 1}\n".encode()
    for name, code, text, old, new in (
        ("seed-other", "seed", f"seed {other}", b"start ", f"start {other}\n".encode()),
        ("started-twice", "console", "`start` twice", b"start ", b"start 1\nstart 1\n"),
        ("never-started", "console", "no line `start`", b"start ", b"st 1\n"),
        ("never-stopped", "console", "no line `stopped`", b"stopped ", b"dropped 1\n"),
        ("stopped-twice", "console", "`stopped` twice", b"stopped ", b"stopped 9\nstopped 9\n"),
        ("readback-missing", "console", "no line `readback done`", b"readback done", b"read\n"),
        ("readback-early", "console", "before `stopped`", b"stopped ",
         b"readback done 1 0\nstopped 9\n"),
        ("readback-short", "readback-short", "acknowledged sectors", b"readback done ",
         b"readback done 1 0\n"),
        ("ack-late", "console", "answered after `stopped`", b"readback done",
         f"acked {issued}\nreadback done 1 0\n".encode()),
        ("last-ack-gone", "console", f"has answers to {issued - 1}", last, b""),
        ("ack-gone", "console", "instead of write 7", half, b""),
        ("garbled", "console", "is garbled", half, b"x" + half),
    ):  # fmt: skip
        changed = _replaced(chunks, old, new)
        if changed is not None:
            yield Fault("content", name, _with_console(evidence, changed), finds(code, text))


def _times(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """A chunk with a time before that of earlier chunks: of the same host, and of another."""
    end = chunks[-1]
    early = replace(end, mono=end.mono - 0.5)
    faulty = _with_console(evidence, [*chunks, early])
    matches = finds("console-time", f"line {end.line}:", "earlier lines")
    yield Fault("content", "stamped-early", faulty, matches)
    head = [chunk for chunk in chunks if chunk.host == end.host]
    foreign = Chunk(UNKNOWN_HOST, end.mono - 1.5, b"ready\n", end.line + 1)
    faulty = _with_console(evidence, [*head, foreign])
    matches = finds("console-time", f"line {foreign.line}:", "earlier lines")
    yield Fault("content", "stamped-early-elsewhere", faulty, matches)


def _moved(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """Output on a host that the guest has left, and on one that it has not reached."""
    final = next(one for one in reversed(evidence.legs) if one.moved)
    assert final.suspended is not None
    assert final.resumed is not None
    end = chunks[-1]
    late = Chunk(final.source, max(end.mono, final.resumed.mono + 6), b"ready\n", end.line + 1)
    faulty = _with_console(evidence, [*chunks, late])
    matches = finds("console-place", f"line {late.line}:", cite(final.resumed))
    yield Fault("content", "output-at-source", faulty, matches)
    moved = next(one for one in evidence.legs if one.moved)
    assert moved.suspended is not None
    early = Chunk(moved.destination, moved.suspended.mono - 0.01, b"ready\n", 10**6)
    at = next(n for n, chunk in enumerate(chunks) if chunk.mono >= early.mono)
    faulty = _with_console(evidence, [*chunks[:at], early, *chunks[at:]])
    matches = finds("console-place", "line 1000000:", "when it ran elsewhere")
    yield Fault("content", "output-at-destination", faulty, matches)


def _paced(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """Acknowledgements long before or long after the allocations, or on another host.

    A few may be late, so that the faults need a record with many of them.
    """
    allocated = evidence.allocations.by_block.values()
    controller = [event.seq for event in evidence.record.events.items if event.pid is None]
    early = sum(event.seq < min(controller, default=0) for event in allocated)
    late = sum(event.seq < max(controller, default=0) for event in allocated)
    acked = len(evidence.console.acks)
    for name, text, by, enough in (
        ("acked-before", "acknowledgements 5 s before", -DAY, acked > 2 * early + 2 * FEW),
        ("acked-after", "acknowledgements 5 s after", DAY, late > FEW),
    ):
        if enough:
            shifted = [replace(chunk, mono=chunk.mono + by) for chunk in chunks]
            faulty = _with_console(evidence, shifted)
            yield Fault("content", name, faulty, finds("console-time", text))
    case = evidence.record.case
    for host in case.hosts if case else ():
        if sum(event.host != host for event in allocated) > FEW:
            faulty = _with_console(evidence, [replace(chunk, host=host) for chunk in chunks])
            yield Fault(
                "content", "one-console", faulty, finds("console-shim", f"{host}'s console")
            )
            return


def _replaced(chunks: list[Chunk], old: bytes, new: bytes) -> list[Chunk] | None:
    """The lines with `new` for the first that begins with `old`; None if there is none."""
    for n, chunk in enumerate(chunks):
        if chunk.data.startswith(old):
            return [*chunks[:n], replace(chunk, data=new), *chunks[n + 1 :]]
    return None
