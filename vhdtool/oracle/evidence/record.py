"""Loads the record of a case into typed values, and lists what is missing or torn.

Nothing here judges. A file that cannot be used becomes a sentence in `problems`. The oracle that
needs the file reports it as a doubt, and the case is inconclusive unless the rest of the record
proves damage.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.case import HOST, MOST_HOSTS, Case, parse_case
from vhdtool.oracle.evidence.events import Events, parse_events
from vhdtool.oracle.evidence.files import LARGEST_IMAGE, names_in, open_regular, read_file
from vhdtool.oracle.evidence.holdings import Holdings, load_holdings
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.evidence.snapshots import Snapshot, load_snapshots

_CONSOLE = re.compile(r"console-(.+)\.log")


PACKED = ".packed"
"""Follows the name of an image that was packed."""


@dataclass(frozen=True)
class Chunk:
    """Bytes of one host's serial console that arrived together."""

    host: str
    mono: float
    data: bytes
    line: int = 0
    """The line of console.jsonl that lists the chunk; 0 if there is none."""


@dataclass(frozen=True)
class Record:
    """A case directory. Each kind of file has its own list of problems."""

    path: Path
    case: Case | None
    case_problem: str | None
    events: Events
    snapshots: tuple[Snapshot, ...]
    snapshot_problems: tuple[str, ...]
    console: tuple[Chunk, ...]
    console_problems: tuple[str, ...]
    image: Path | None
    image_problem: str | None
    qemu_check: Mapping[str, object] | None = None
    """The report of `qemu-img check` on a qcow2 image; None if it is missing or torn."""
    unlisted_logs: Mapping[str, bytes] = field(default_factory=dict)
    """Host -> console log, of logs with content that console.jsonl does not list."""
    reproduce: str | None = None
    """The command in reproduce.txt."""
    holdings: tuple[Holdings, ...] = ()
    holdings_problems: tuple[str, ...] = ()


def load_record(path: Path) -> Record:
    """Reads every file but the image. Never raises for the content of a record."""
    case, case_problem = None, None
    try:
        case = parse_case(strict.parse_object(read_file(path / "case.json")))
    except TornRecord as error:
        case_problem = f"case.json: {error}"
    events_data, missing = b"", None
    try:
        events_data = read_file(path / "events.jsonl")
    except TornRecord as error:
        missing = f"events.jsonl: {error}"
    events = parse_events(events_data, case.hosts if case else None)
    if missing:
        events = Events((), (missing,))
    snapshots, snapshot_problems = load_snapshots(path / "metadata", case, events)
    console, console_problems, listed = _console(path)
    image, image_problem = _image(path, case)
    return Record(
        path, case, case_problem, events, snapshots, snapshot_problems,
        console, console_problems, image, image_problem, _qemu_check(path),
        _unlisted_logs(path, listed), _reproduce(path), *load_holdings(path / "held"),
    )  # fmt: skip


def _qemu_check(path: Path) -> Mapping[str, object] | None:
    """check.json; None unless its counts are integers."""
    try:
        report = strict.parse_object(read_file(path / "check.json"))
        strict.integer(report, "check-errors")
        for key in ("corruptions", "leaks"):
            if key in report:
                strict.integer(report, key)
    except TornRecord:
        return None
    return report


def empty_record(path: Path) -> Record:
    """The record of a case that could not be read at all."""
    gone = "the record could not be read"
    return Record(path, None, gone, Events((), (gone,)), (), (gone,), (), (gone,), None, gone)


def _image(path: Path, case: Case | None) -> tuple[Path | None, str | None]:
    """(path, None), or (None, why it cannot be read). An image may be packed, not both."""
    name = case.image if case else "image.vhd"
    packed = f"{name}{PACKED}"
    if os.path.lexists(path / packed):
        if os.path.lexists(path / name):
            return None, f"{name}: exists beside {packed}; only one of them can be the image"
        name = packed
    try:
        os.close(open_regular(path / name, LARGEST_IMAGE))
    except TornRecord as error:
        return None, f"{name}: {error}"
    return path / name, None


def _reproduce(path: Path) -> str | None:
    try:
        return read_file(path / "reproduce.txt", 1 << 16).decode("utf-8", "replace").strip()
    except TornRecord:
        return None


def _console(path: Path) -> tuple[tuple[Chunk, ...], tuple[str, ...], frozenset[str]]:
    """(chunks in the order of console.jsonl, problems, hosts that console.jsonl lists).

    A chunk ends where the next chunk of its host begins.
    """
    entries, problems = [], []
    try:
        *lines, rest = read_file(path / "console.jsonl").split(b"\n")
        if rest:
            problems.append("console.jsonl is torn: its last line is not terminated")
        for number, line in enumerate(lines, 1):
            entries.append(_console_line(line, number))
    except TornRecord as error:
        problems.append(f"console.jsonl: {error}")
    named = list(dict.fromkeys(host for host, _, _ in entries))
    if len(named) > MOST_HOSTS:
        return (), (f"console.jsonl names {len(named)} hosts",), frozenset(named)
    logs: dict[str, bytes] = {}
    for host in named:
        try:
            logs[host] = read_file(path / f"console-{host}.log")
        except TornRecord as error:
            problems.append(f"console-{host}.log: {error}")
    chunks: list[Chunk] = []
    ends = {host: len(log) for host, log in logs.items()}
    for number, (host, offset, mono) in zip(
        range(len(entries), 0, -1), reversed(entries), strict=True
    ):
        end = ends.get(host)
        if end is None:
            continue
        if offset > end:
            problems.append(
                f"console-{host}.log: shorter than console.jsonl says, or offsets do not rise"
            )
        chunks.append(Chunk(host, mono, logs[host][offset:end], number))
        ends[host] = min(offset, end)
    problems += [
        f"console.jsonl: no line lists the first {end} bytes of console-{host}.log"
        for host, end in ends.items()
        if end
    ]
    if not entries and not problems:
        problems.append("console.jsonl is empty")
    return tuple(reversed(chunks)), tuple(problems), frozenset(named)


def _unlisted_logs(path: Path, listed: frozenset[str]) -> dict[str, bytes]:
    """Console logs of hosts that console.jsonl does not list, unless they are empty."""
    found: dict[str, bytes] = {}
    for name in names_in(path):
        match = _CONSOLE.fullmatch(name)
        if match is None or match[1] in listed or len(found) >= MOST_HOSTS:
            continue
        try:
            data = read_file(path / name)
        except TornRecord as error:
            data = f"({error})".encode()
        if data:
            found[match[1]] = data
    return found


def _console_line(line: bytes, number: int) -> tuple[str, int, float]:
    try:
        entry = strict.parse_object(line)
        host = strict.text(entry, "host")
        if not HOST.fullmatch(host):
            raise TornRecord(f"unknown host {host[:40]!r}")
        return host, strict.integer(entry, "offset"), strict.number(entry, "mono")
    except TornRecord as error:
        raise TornRecord(f"line {number}: {error}") from error
