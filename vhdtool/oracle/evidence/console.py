"""What the guest said: the consoles of both hosts joined, then read line by line.

The switch may cut a line in two, one half in each host's log, so the raw bytes are joined in the
order of arrival before they are split. Only lines that end count.

The guest tries writes one after the other and says `acked n` or `error n errno` for each. A
number out of turn therefore shows that bytes are missing; an acknowledgement is then believed
only where its predecessor stands right before it, because two torn lines can join into a number
that was never said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vhdtool.oracle.evidence.record import Chunk

_LINE = re.compile(
    rb"(?P<acked>acked (\d{1,12}))|(?P<error>error (\d{1,12}) (\d{1,6}))|(?P<ready>ready)"
    rb"|(?P<start>start (\d{1,20}))|(?P<stopped>stopped (\d{1,12}))"
    rb"|(?P<deep>deep( \d{1,2}:\d{1,8})+)|(?P<deepstart>deep start (\d{1,3}))"
    rb"|(?P<deeperror>deep error (\d{1,2}) (\d{1,8}) (\d{1,6}))"
    rb"|(?P<deepchecked>deep checked (\d{1,9}) (\d{1,9}))"
    rb"|(?P<bad>readback bad (\d{1,12}) (\d{1,15}))|(?P<done>readback done (\d{1,15}) (\d{1,15}))"
)
_GARBLED = re.compile(rb"acked|readback |deep |^stopped|^error \d|^start \d")
_OOPS = re.compile(rb"Oops\b|BUG:|Kernel panic|general protection")
_DISK = re.compile(rb"I/O error|blk_update_request|end_request:|lost async page write|medium error")
"""What the guest's kernel says when its disk fails."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Write `n` was acknowledged; the line was complete at `mono`, on `host`'s console."""

    n: int
    mono: float
    host: str


@dataclass(frozen=True, slots=True)
class Check:
    """The guest read what was written once: sectors written, and how many extents differed."""

    mono: float
    host: str
    checked: int
    bad: int


@dataclass
class Console:
    """The guest's words. `issued`: writes tried, or None when it never said `stopped`."""

    acks: list[Ack] = field(default_factory=list)
    errors: list[tuple[int, int]] = field(default_factory=list)
    seed: int | None = None
    issued: int | None = None
    oops: str | None = None
    bad: list[tuple[int, int]] = field(default_factory=list)
    """(write, sector) of the guest's own read-back that differed; the guest names the first."""
    checked: int | None = None
    bad_total: int | None = None
    """Sectors that the guest read back, and how many differed; None before it was done."""
    deep: dict[int, list[Ack]] = field(default_factory=dict)
    """Acknowledgements of the deep half of the load: by slot, `n` counting up from 0 without gaps.
    Where the console is torn they may be fewer than the guest said, never more."""
    deep_began: float | None = None
    """When the guest said that all slots have a request in flight."""
    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return self.seed is not None


def read_console(chunks: Sequence[Chunk], problems: Sequence[str]) -> Console:
    """Parses the joined consoles; `problems` of the files come first in its own."""
    console = Console(problems=list(problems))
    state = _Turn(console, whole=not problems)
    for line, chunk in lines_of(chunks):
        if console.oops is None and _OOPS.search(line):
            console.oops = line.decode("ascii", "replace").strip()[:200]
        match = _LINE.fullmatch(line)
        if match:
            state.take(match, chunk)
        elif _DISK.search(line):
            text = line.decode("ascii", "replace").strip()[:160]
            where = f"{chunk.host}'s console (console.jsonl, line {chunk.line})"
            console.problems.append(f"the guest's kernel reports I/O errors on {where}: {text}")
        elif _GARBLED.search(line):
            state.torn(f"a line of the guest is garbled: {line[:60]!r}")
    if console.seed is None:
        console.problems.append("the console has no `start`: the load's seed is not confirmed")
    if console.issued is None:
        console.problems.append("the guest never said `stopped`: its console is cut off")
    elif state.next != console.issued:
        console.problems.append(
            f"the guest issued {console.issued} writes, its console tells of {state.next}"
        )
    if console.checked is None:
        console.problems.append("the guest's own read-back is missing")
    return console


def lines_of(chunks: Sequence[Chunk]) -> list[tuple[bytes, Chunk]]:
    """(line without its end, chunk in which it ended)."""
    lines: list[tuple[bytes, Chunk]] = []
    pending = b""
    for chunk in chunks:
        *ended, pending = (pending + chunk.data).split(b"\n")
        lines += [(line.rstrip(b"\r"), chunk) for line in ended]
    return lines


class _Turn:
    """Keeps the order of the guest's writes, and what can be believed once it is broken."""

    def __init__(self, console: Console, whole: bool) -> None:
        self.console = console
        self.whole = whole
        self.next = 0
        self.follows = True
        """The line before was the write before."""

    def torn(self, reason: str) -> None:
        if self.whole:
            self.console.problems.append(reason)
        self.whole = False
        self.follows = False

    def take(self, match: re.Match[bytes], chunk: Chunk) -> None:
        console = self.console
        kind = match.lastgroup
        if kind is not None and kind.startswith("deep"):
            self._deep(kind, match[0], chunk)
            return
        numbers = [int(word) for word in match[0].split() if word.isdigit()]
        if console.checked is not None and kind != "ready":
            self.torn(f"the guest says {match[0][:40]!r} after its read-back was done")
        if kind == "start":
            if console.started:
                self.torn("the guest started its load twice")
            console.seed = numbers[0]
        elif kind == "stopped":
            if console.issued is not None:
                self.torn("the guest said `stopped` twice")
            console.issued = numbers[0]
        elif kind == "bad":
            console.bad.append((numbers[0], numbers[1]))
        elif kind == "done":
            if console.issued is None:
                self.torn("the guest read back before it had stopped")
            checked, bad = numbers
            # Of two read-backs the worse one counts.
            console.checked = max(checked, console.checked or 0)
            console.bad_total = max(bad, console.bad_total or 0)
        elif kind == "error" and console.issued is not None:
            # After `stopped` nothing is written: the read-back itself failed.
            console.errors.append((numbers[0], numbers[1]))
        elif kind in ("acked", "error"):
            if console.issued is not None:
                self.torn(f"write {numbers[0]} is acknowledged after the guest said `stopped`")
            self._write(kind, numbers, chunk)

    def _deep(self, kind: str, line: bytes, chunk: Chunk) -> None:
        """A line of the deep half. Its slots are told by several processes, in any order."""
        console = self.console
        numbers = [int(word) for word in re.findall(rb"\d+", line)]
        if console.issued is not None:
            self.torn(f"the guest says {line[:40]!r} after it had stopped")
        if kind == "deepstart":
            if console.deep_began is not None:
                self.torn("the guest started the deep half of its load twice")
            console.deep_began = chunk.mono
        elif kind == "deepchecked":
            console.checks.append(Check(chunk.mono, chunk.host, *numbers))
        elif kind == "deeperror":
            console.errors.append((numbers[1], numbers[2]))
        else:
            for slot, seq in zip(numbers[::2], numbers[1::2], strict=True):
                acks = console.deep.setdefault(slot, [])
                if seq != len(acks):
                    self.torn(f"slot {slot} has {seq} acknowledged where {len(acks)} is due")
                elif self.whole:
                    acks.append(Ack(seq, chunk.mono, chunk.host))

    def _write(self, kind: str, numbers: list[int], chunk: Chunk) -> None:
        console, n = self.console, numbers[0]
        if n != self.next:
            self.torn(f"write {n} is answered where write {self.next} is due")
        believed = self.whole or self.follows
        self.follows = True
        self.next = n + 1
        if kind == "error":
            console.errors.append((n, numbers[1]))
        elif believed:
            console.acks.append(Ack(n, chunk.mono, chunk.host))
