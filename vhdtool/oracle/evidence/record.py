"""Loads the record of a case into typed values, strictly, and says what is missing or torn.

Nothing here judges. A piece that cannot be used becomes a text in `problems`; the oracle that
needs the piece turns it into a doubt, and so into `inconclusive`, unless what is left proves
damage all the same.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.case import HOST, MOST_HOSTS, Case, parse_case
from vhdtool.oracle.evidence.events import Events, parse_events
from vhdtool.oracle.evidence.files import LARGEST_IMAGE, names_in, open_regular, read_piece
from vhdtool.oracle.evidence.held import Held, load_held
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.evidence.snapshots import Snapshot, load_snapshots

_CONSOLE = re.compile(r"console-(.+)\.log")


@dataclass(frozen=True)
class Chunk:
    """Bytes of one host's serial console that arrived together."""

    host: str
    mono: float
    data: bytes
    line: int = 0
    """Which line of console.jsonl tells of them; 0 where none does."""


@dataclass(frozen=True)
class Record:
    """A case directory. Problems are kept by the piece they concern."""

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
    checked: Mapping[str, object] | None = None
    """What `qemu-img check` said of a qcow2 image; None where there is nothing to be used."""
    unnamed: Mapping[str, bytes] = field(default_factory=dict)
    """Console logs with bytes in them of which console.jsonl tells nothing, by host."""
    reproduce: str | None = None
    """The command in reproduce.txt."""
    held: tuple[Held, ...] = ()
    """What the hosts held, look by look."""
    held_problems: tuple[str, ...] = ()


def load_record(path: Path) -> Record:
    """Reads everything but the image. Never raises for what a record may contain."""
    case, case_problem = None, None
    try:
        case = parse_case(strict.parse_object(read_piece(path / "case.json")))
    except TornRecord as error:
        case_problem = f"case.json: {error}"
    events_data, missing = b"", None
    try:
        events_data = read_piece(path / "events.jsonl")
    except TornRecord as error:
        missing = f"events.jsonl: {error}"
    events = parse_events(events_data, case.hosts if case else None)
    if missing:
        events = Events((), (missing,))
    snapshots, snapshot_problems = load_snapshots(path / "metadata", case, events)
    console, console_problems, named = _console(path)
    image, image_problem = _image(path, case)
    return Record(
        path, case, case_problem, events, snapshots, snapshot_problems,
        console, console_problems, image, image_problem, _checked(path),
        _unnamed(path, named), _reproduce(path), *load_held(path / "held"),
    )  # fmt: skip


def _checked(path: Path) -> Mapping[str, object] | None:
    """check.json, with counts that are counts."""
    try:
        told = strict.parse_object(read_piece(path / "check.json"))
        strict.integer(told, "check-errors")
        for key in ("corruptions", "leaks"):
            if key in told:
                strict.integer(told, key)
    except TornRecord:
        return None
    return told


def unread(path: Path) -> Record:
    """The record of a case of which nothing could be read."""
    gone = "the record could not be read"
    return Record(path, None, gone, Events((), (gone,)), (), (gone,), (), (gone,), None, gone)


def _image(path: Path, case: Case | None) -> tuple[Path | None, str | None]:
    name = case.image if case else "image.vhd"
    try:
        os.close(open_regular(path / name, LARGEST_IMAGE))
    except TornRecord as error:
        return None, f"{name}: {error}"
    return path / name, None


def _reproduce(path: Path) -> str | None:
    try:
        return read_piece(path / "reproduce.txt", 1 << 16).decode("utf-8", "replace").strip()
    except TornRecord:
        return None


def _console(path: Path) -> tuple[tuple[Chunk, ...], tuple[str, ...], frozenset[str]]:
    """The chunks in the order of console.jsonl, problems, and the hosts that it names.

    A chunk ends where the next of its host begins.
    """
    entries, problems = [], []
    try:
        *lines, rest = read_piece(path / "console.jsonl").split(b"\n")
        if rest:
            problems.append("console.jsonl is torn: its last line does not end")
        for place, line in enumerate(lines, 1):
            entries.append(_console_line(line, place))
    except TornRecord as error:
        problems.append(f"console.jsonl: {error}")
    named = list(dict.fromkeys(host for host, _, _ in entries))
    if len(named) > MOST_HOSTS:
        return (), (f"console.jsonl names {len(named)} hosts",), frozenset(named)
    logs: dict[str, bytes] = {}
    for host in named:
        try:
            logs[host] = read_piece(path / f"console-{host}.log")
        except TornRecord as error:
            problems.append(f"console-{host}.log: {error}")
    chunks: list[Chunk] = []
    ends = {host: len(log) for host, log in logs.items()}
    for place, (host, offset, mono) in zip(
        range(len(entries), 0, -1), reversed(entries), strict=True
    ):
        end = ends.get(host)
        if end is None:
            continue
        if offset > end:
            problems.append(f"console-{host}.log: shorter than console.jsonl says, or disordered")
        chunks.append(Chunk(host, mono, logs[host][offset:end], place))
        ends[host] = min(offset, end)
    problems += [
        f"console.jsonl: the first {end} bytes of console-{host}.log are in no chunk"
        for host, end in ends.items()
        if end
    ]
    if not entries and not problems:
        problems.append("console.jsonl is empty")
    return tuple(reversed(chunks)), tuple(problems), frozenset(named)


def _unnamed(path: Path, named: frozenset[str]) -> dict[str, bytes]:
    """A console log of a host of which console.jsonl tells nothing, unless it is empty."""
    found: dict[str, bytes] = {}
    for name in names_in(path):
        match = _CONSOLE.fullmatch(name)
        if match is None or match[1] in named or len(found) >= MOST_HOSTS:
            continue
        try:
            data = read_piece(path / name)
        except TornRecord as error:
            data = f"({error})".encode()
        if data:
            found[match[1]] = data
    return found


def _console_line(line: bytes, place: int) -> tuple[str, int, float]:
    try:
        entry = strict.parse_object(line)
        host = strict.text(entry, "host")
        if not HOST.fullmatch(host):
            raise TornRecord(f"unknown host {host[:40]!r}")
        return host, strict.integer(entry, "offset"), strict.number(entry, "mono")
    except TornRecord as error:
        raise TornRecord(f"line {place}: {error}") from error
