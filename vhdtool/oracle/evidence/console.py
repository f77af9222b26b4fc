"""The guest's console: the consoles of both hosts joined, then parsed line by line.

The switch may cut a line in two, one half in each host's log, so the raw bytes are joined in the
order of arrival before they are split into lines. An unterminated line does not count.

The guest issues its paced writes one after the other and prints `acked n` or `error n errno` for
each. A number out of sequence means that bytes are missing. From then on an acknowledgement counts
only if the line of the preceding write is right before it, because two torn lines can join into a
number that was never printed.
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
"""Messages of the guest's kernel about a disk that fails."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Write `n` was acknowledged; its line ended at `mono`, on `host`'s console."""

    n: int
    mono: float
    host: str


@dataclass(frozen=True, slots=True)
class ExtentCheck:
    """The guest read the extents that it writes once: how many it read, and how many differed."""

    mono: float
    host: str
    checked: int
    bad: int


@dataclass
class Console:
    """The parsed console. `issued`: writes issued, or None if `stopped` is missing."""

    acks: list[Ack] = field(default_factory=list)
    errors: list[tuple[int, int]] = field(default_factory=list)
    seed: int | None = None
    issued: int | None = None
    oops: str | None = None
    bad: list[tuple[int, int]] = field(default_factory=list)
    """(write, sector) that the guest's own read-back names as wrong: the first few."""
    checked: int | None = None
    bad_total: int | None = None
    """Sectors that the guest read back, and how many differed; None without a read-back."""
    deep: dict[int, list[Ack]] = field(default_factory=dict)
    """Acknowledgements of the deep half by slot; `n` counts up from 0 without gaps. Of a torn
    console they may be fewer than the guest printed, never more."""
    deep_began: float | None = None
    """When all slots of the deep half had a request in flight."""
    checks: list[ExtentCheck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return self.seed is not None


def read_console(chunks: Sequence[Chunk], problems: Sequence[str]) -> Console:
    """Parses the chunks of all consoles; `problems`: those of the files, listed first."""
    console = Console(problems=list(problems))
    state = _Parser(console, whole=not problems)
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
        console.problems.append("the console has no line `start`: the load's seed is unknown")
    if console.issued is None:
        console.problems.append("the console has no line `stopped`: it is cut off")
    elif state.next != console.issued:
        console.problems.append(
            f"the guest issued {console.issued} writes, its console has answers to {state.next}"
        )
    if console.checked is None:
        console.problems.append("the console has no line `readback done`")
    return console


def lines_of(chunks: Sequence[Chunk]) -> list[tuple[bytes, Chunk]]:
    """(line without its terminator, chunk in which the line ended)."""
    lines: list[tuple[bytes, Chunk]] = []
    pending = b""
    for chunk in chunks:
        *ended, pending = (pending + chunk.data).split(b"\n")
        lines += [(line.rstrip(b"\r"), chunk) for line in ended]
    return lines


class _Parser:
    """Follows the sequence of the guest's lines, and decides what counts once it is broken."""

    def __init__(self, console: Console, whole: bool) -> None:
        self.console = console
        self.whole = whole
        self.next = 0
        self.follows = True
        """Whether the preceding line answered the preceding write."""

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
            self.torn(f"the guest printed {match[0][:40]!r} after `readback done`")
        if kind == "start":
            if console.started:
                self.torn("the guest printed `start` twice")
            console.seed = numbers[0]
        elif kind == "stopped":
            if console.issued is not None:
                self.torn("the guest printed `stopped` twice")
            console.issued = numbers[0]
        elif kind == "bad":
            console.bad.append((numbers[0], numbers[1]))
        elif kind == "done":
            if console.issued is None:
                self.torn("the guest printed `readback done` before `stopped`")
            checked, bad = numbers
            # Of two read-backs the worse one counts.
            console.checked = max(checked, console.checked or 0)
            console.bad_total = max(bad, console.bad_total or 0)
        elif kind == "error" and console.issued is not None:
            # After `stopped` the guest only reads: its read-back failed.
            console.errors.append((numbers[0], numbers[1]))
        elif kind in ("acked", "error"):
            if console.issued is not None:
                self.torn(f"write {numbers[0]} is answered after `stopped`")
            self._write(kind, numbers, chunk)

    def _deep(self, kind: str, line: bytes, chunk: Chunk) -> None:
        """Parses a line of the deep half. Several processes print for its slots, in any order."""
        console = self.console
        numbers = [int(word) for word in re.findall(rb"\d+", line)]
        if console.issued is not None:
            self.torn(f"the guest printed {line[:40]!r} after `stopped`")
        if kind == "deepstart":
            if console.deep_began is not None:
                self.torn("the guest printed `deep start` twice")
            console.deep_began = chunk.mono
        elif kind == "deepchecked":
            console.checks.append(ExtentCheck(chunk.mono, chunk.host, *numbers))
        elif kind == "deeperror":
            console.errors.append((numbers[1], numbers[2]))
        else:
            for slot, seq in zip(numbers[::2], numbers[1::2], strict=True):
                acks = console.deep.setdefault(slot, [])
                if seq != len(acks):
                    self.torn(f"slot {slot} acknowledges request {seq} instead of {len(acks)}")
                elif self.whole:
                    acks.append(Ack(seq, chunk.mono, chunk.host))

    def _write(self, kind: str, numbers: list[int], chunk: Chunk) -> None:
        console, n = self.console, numbers[0]
        if n != self.next:
            self.torn(f"write {n} is answered instead of write {self.next}")
        counts = self.whole or self.follows
        self.follows = True
        self.next = n + 1
        if kind == "error":
            console.errors.append((n, numbers[1]))
        elif counts:
            console.acks.append(Ack(n, chunk.mono, chunk.host))
