"""metadata/<leg>-<point>.json: snapshots, the metadata dumps of the image at named points."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.case import POINTS, Case
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.files import LARGEST_FILE, names_in, read_file
from vhdtool.oracle.evidence.json_fields import TornRecord

_SNAPSHOT = re.compile(r"([1-9]\d{0,2})-([a-z-]+)\.json")

LARGEST_TOGETHER = 256 << 20
"""Bytes of all snapshots of a case."""
MOST_NAMES = 1024


@dataclass(frozen=True)
class Snapshot:
    """One metadata/<leg>-<point>.json. `meta`: the dump of vhdtool.image.metadata.dump."""

    leg: int
    point: str
    seq: int
    meta: Mapping[str, object]

    @property
    def name(self) -> str:
        return f"{self.leg}-{self.point}"


def load_snapshots(
    folder: Path, case: Case | None, events: Events
) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """(snapshots by seq, problems). A required point without a snapshot is a problem."""
    snapshots, problems = [], []
    remaining = LARGEST_TOGETHER
    for name in names_in(folder, MOST_NAMES):
        try:
            snapshot, size = _snapshot(folder / name, remaining)
            remaining -= size
            snapshots.append(snapshot)
        except TornRecord as error:
            problems.append(f"metadata/{name}: {error}")
    torn = {problem.split(":")[0] for problem in problems}
    have = {snapshot.name for snapshot in snapshots}
    required = _required(case) if case else {}
    for leg, points in sorted(required.items()):
        for point in points:
            name = f"metadata/{leg}-{point}.json"
            if f"{leg}-{point}" not in have and name not in torn:
                problems.append(f"{name}: missing")
    snapshots.sort(key=lambda snapshot: (snapshot.seq, snapshot.leg, POINTS.index(snapshot.point)))
    return tuple(snapshots), (*problems, *_disorder(snapshots, events))


def _required(case: Case) -> dict[int, tuple[str, ...]]:
    """Leg -> points. All hosts have closed the image once: at the end of the last leg."""
    required = {
        leg: tuple(point for point in points if point != "all-closed")
        for leg, points in case.points.items()
        if leg <= case.legs
    }
    required[case.legs] = (*required[case.legs], "all-closed")
    return required


def _disorder(snapshots: Sequence[Snapshot], events: Events) -> list[str]:
    """Snapshots whose order or `seq` cannot be right; `snapshots` rise in seq."""
    problems = []
    for before, after in itertools.pairwise(snapshots):
        if after.leg < before.leg or (after.leg == before.leg and before.point == "all-closed"):
            problems.append(
                f"metadata/{after.name}.json: taken at seq {after.seq}, after {before.name}"
            )
    if events.complete:
        problems += [
            f"events.jsonl ends at seq {events.last_seq}, before metadata {snapshot.name} "
            f"was taken (seq {snapshot.seq})"
            for snapshot in snapshots
            if snapshot.seq > events.last_seq
        ]
    return problems


def _snapshot(path: Path, most: int) -> tuple[Snapshot, int]:
    """(snapshot, bytes of its file)."""
    match = _SNAPSHOT.fullmatch(path.name)
    if not match or match[2] not in POINTS:
        raise TornRecord("not a name of the form <leg>-<point>.json")
    data = read_file(path, min(most, LARGEST_FILE))
    meta = strict.parse_object(data)
    if meta.get("schema") != 1:
        raise TornRecord(f"schema is {meta.get('schema')!r}; known is 1")
    if strict.text(meta, "point") != match[2]:
        raise TornRecord(f"its point is {meta['point']!r}, unlike in its name")
    strict.integer(meta, "file_size")
    for key in ("footer", "header"):
        if key not in meta or not isinstance(meta[key], dict | None):
            raise TornRecord(f"{key!r} is neither an object nor null")
    _hex_or_null(meta, "batmap")
    bat, bitmaps = meta.get("bat"), meta.get("bitmaps")
    if not isinstance(bat, dict) or not isinstance(bitmaps, dict):
        raise TornRecord("'bat' or 'bitmaps' is not an object")
    for block in bat:
        strict.integer(bat, block, 0, 0xFFFFFFFF)
    for block in bitmaps:
        _hex_or_null(bitmaps, block)
    if not all(block.isdecimal() and block.isascii() for block in (*bat, *bitmaps)):
        raise TornRecord("a key of 'bat' or 'bitmaps' is not a block number")
    if not set(bitmaps) <= set(bat):
        raise TornRecord("'bitmaps' has a block that 'bat' does not have")
    return Snapshot(int(match[1]), match[2], strict.integer(meta, "seq"), meta), len(data)


def _hex_or_null(source: strict.Object, key: str) -> None:
    value = source.get(key)
    try:
        if key in source and (value is None or bytes.fromhex(value) is not None):  # type: ignore[arg-type]
            return
    except (TypeError, ValueError):
        pass
    raise TornRecord(f"{key!r} is neither hexadecimal nor null")
