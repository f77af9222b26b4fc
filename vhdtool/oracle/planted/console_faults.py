"""Faults to plant in copies of the consoles: what the guest said, where, and when."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import lines_of, read_console
from vhdtool.oracle.evidence.grammar import line
from vhdtool.oracle.evidence.record import Chunk
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.event_faults import says
from vhdtool.oracle.planted.faults import Fault

DAY = 86400.0
FEW = 80
STRANGER = "a-stranger"
SHORT = 21
"""Lines at the start of a console that is read often: `start`, and twenty writes."""


def console_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """Consoles that contradict themselves, the case, the events or the disk.

    None is about the data on the disk, so the image is left out: it would be read each time.
    """
    record, case = evidence.record, evidence.record.case
    if case is None or not record.console or judged.content.worst("doubt"):
        return
    chunks = [
        replace(chunk, data=words + b"\n") for words, chunk in lines_of(record.console)
    ]  # fmt: skip
    yield from _said(evidence, chunks, case)
    yield from _stamped(evidence, chunks)
    moved = [one for one in evidence.attempts if one.moved and one.suspended and one.resumed]
    if moved:
        yield from _moved(evidence, chunks)
    if evidence.told.load:
        yield from _paced(evidence, chunks)


def _heard(
    evidence: Evidence, chunks: list[Chunk], unnamed: Mapping[str, bytes] | None = None
) -> Evidence:
    """The same record with another console, and without the image."""
    record = replace(evidence.record, console=tuple(chunks), unnamed=unnamed or {})
    return replace(evidence, record=record, console=read_console(chunks, ()), view=None)


def _said(evidence: Evidence, chunks: list[Chunk], case: Case) -> Iterator[Fault]:
    """Lines that the guest or its kernel may have said, and none was to be."""
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
    strange = Chunk(STRANGER, end.mono, b"ready\n", end.line + 7)
    logs = {STRANGER: b"Kernel panic", "gone": b"x"}
    faulty = _heard(evidence, [*more, strange], logs)
    for name, code, texts in (
        ("readback-bad", "readback-bad", (f"sector {sector} ",)),
        ("readback-bad-count", "readback-bad", (f"read {wrong} of",)),
        ("readback-twice", "console", ("after its read-back was done",)),
        ("io-error", "io-error", ("errno 5",)),
        ("kernel-io-error", "console", ("kernel reports I/O errors",)),
        ("strange-host", "console-host", (f"line {strange.line}:", STRANGER)),
        ("speaks-elsewhere", "console-place", (f"line {strange.line}:", "to which no leg")),
        ("unnamed-panic", "console-unnamed", (STRANGER, "panic")),
        ("unnamed-log", "console-unnamed", ("console-gone.log",)),
    ):
        yield Fault("content", name, faulty, says(code, *texts))
    yield from _torn(evidence, _short(chunks))


def _short(chunks: list[Chunk]) -> list[Chunk]:
    """The first lines and the last: reading a few is enough to hear one that is out of turn."""
    words = (b"start ", b"acked ", b"stopped ", b"readback done ")
    said = [chunk for chunk in chunks if chunk.data.startswith(words)]
    return [*said[:SHORT], *said[-2:]]


def _torn(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """One line more or less, in the guest's own words."""
    issued = SHORT - 1
    case = evidence.record.case
    other = 8 if case is not None and case.seed == 9 else 9
    chunks = _over(chunks, b"stopped ", f"stopped {issued}\n".encode()) or chunks
    half, last = b"acked 7\n", f"acked {issued - 1}\n".encode()
    for name, code, text, old, new in (
        ("seed-other", "seed", f"seed {other}", b"start ", f"start {other}\n".encode()),
        ("started-twice", "console", "its load twice", b"start ", b"start 1\nstart 1\n"),
        ("never-started", "console", "has no `start`", b"start ", b"st 1\n"),
        ("never-stopped", "console", "never said `stopped`", b"stopped ", b"dropped 1\n"),
        ("stopped-twice", "console", "`stopped` twice", b"stopped ", b"stopped 9\nstopped 9\n"),
        ("readback-missing", "console", "read-back is missing", b"readback done", b"read\n"),
        ("readback-early", "console", "before it had stopped", b"stopped ",
         b"readback done 1 0\nstopped 9\n"),
        ("readback-short", "readback-short", "sectors of", b"readback done ",
         b"readback done 1 0\n"),
        ("ack-late", "console", "after the guest said `stopped`", b"readback done",
         f"acked {issued}\nreadback done 1 0\n".encode()),
        ("last-ack-gone", "console", f"tells of {issued - 1}", last, b""),
        ("ack-gone", "console", "where write 7 is due", half, b""),
        ("garbled", "console", "is garbled", half, b"x" + half),
    ):  # fmt: skip
        changed = _over(chunks, old, new)
        if changed is not None:
            yield Fault("content", name, _heard(evidence, changed), says(code, text))


def _stamped(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """A chunk that came before the ones above it, of one host and of any."""
    end = chunks[-1]
    early = replace(end, mono=end.mono - 0.5)
    faulty = _heard(evidence, [*chunks, early])
    yield Fault(
        "content", "stamped-early", faulty, says("console-time", f"line {end.line}:", "above it")
    )
    head = [chunk for chunk in chunks if chunk.host == end.host]
    alien = Chunk(STRANGER, end.mono - 1.5, b"ready\n", end.line + 1)
    faulty = _heard(evidence, [*head, alien])
    place = says("console-time", f"line {alien.line}:", "above it")
    yield Fault("content", "stamped-early-elsewhere", faulty, place)


def _moved(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """The guest on a host that it has left, or has not come to."""
    final = next(one for one in reversed(evidence.attempts) if one.moved)
    assert final.suspended is not None
    assert final.resumed is not None
    end = chunks[-1]
    late = Chunk(final.source, max(end.mono, final.resumed.mono + 6), b"ready\n", end.line + 1)
    faulty = _heard(evidence, [*chunks, late])
    place = says("console-place", f"line {late.line}:", line(final.resumed))
    yield Fault("content", "stayed-behind", faulty, place)
    went = next(one for one in evidence.attempts if one.moved)
    assert went.suspended is not None
    soon = Chunk(went.destination, went.suspended.mono - 0.01, b"ready\n", 10**6)
    at = next(n for n, chunk in enumerate(chunks) if chunk.mono >= soon.mono)
    faulty = _heard(evidence, [*chunks[:at], soon, *chunks[at:]])
    place = says("console-place", "line 1000000:", "when it was not there")
    yield Fault("content", "there-too-early", faulty, place)


def _paced(evidence: Evidence, chunks: list[Chunk]) -> Iterator[Fault]:
    """Acknowledgements that came long before, or long after, what the shims told; or elsewhere.

    A few may be on their way, so that a record with a few tells nothing.
    """
    told = evidence.told.first.values()
    controller = [event.seq for event in evidence.record.events.items if event.pid is None]
    early = sum(event.seq < min(controller, default=0) for event in told)
    late = sum(event.seq < max(controller, default=0) for event in told)
    acked = len(evidence.console.acks)
    for name, text, by, enough in (
        ("acked-before", "acknowledgements 5 s before", -DAY, acked > 2 * early + 2 * FEW),
        ("acked-after", "acknowledgements 5 s after", DAY, late > FEW),
    ):
        if enough:
            shifted = [replace(chunk, mono=chunk.mono + by) for chunk in chunks]
            yield Fault("content", name, _heard(evidence, shifted), says("console-time", text))
    case = evidence.record.case
    for host in case.hosts if case else ():
        if sum(event.host != host for event in told) > FEW:
            turned = [replace(chunk, host=host) for chunk in chunks]
            faulty = _heard(evidence, turned)
            yield Fault("content", "one-console", faulty, says("console-shim", f"{host}'s console"))
            return


def _over(chunks: list[Chunk], old: bytes, new: bytes) -> list[Chunk] | None:
    """The lines with another one in the place of the first that begins so; None: there is none."""
    for n, chunk in enumerate(chunks):
        if chunk.data.startswith(old):
            return [*chunks[:n], replace(chunk, data=new), *chunks[n + 1 :]]
    return None
