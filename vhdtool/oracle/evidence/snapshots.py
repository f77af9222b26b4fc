"""metadata/<leg>-<point>.json: the image's metadata as the lab saw it at a point in time."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.case import POINTS, Case
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.files import LARGEST_PIECE, names_in, read_piece
from vhdtool.oracle.evidence.json_fields import TornRecord

_SNAPSHOT = re.compile(r"([1-9]\d{0,2})-([a-z-]+)\.json")

LARGEST_TOGETHER = 256 << 20
"""Bytes of all snapshots of a case."""
MOST_NAMES = 1024


@dataclass(frozen=True)
class Snapshot:
    """One metadata/<leg>-<point>.json; `meta` as image.meta.snapshot made it."""

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
    snapshots, problems = [], []
    room = LARGEST_TOGETHER
    for name in names_in(folder, MOST_NAMES):
        try:
            snapshot, size = _snapshot(folder / name, room)
            room -= size
            snapshots.append(snapshot)
        except TornRecord as error:
            problems.append(f"metadata/{name}: {error}")
    torn = {problem.split(":")[0] for problem in problems}
    have = {snapshot.name for snapshot in snapshots}
    required = _required(case) if case else {}
    for leg, points in sorted(required.items()):
        for point in points:
            piece = f"metadata/{leg}-{point}.json"
            if f"{leg}-{point}" not in have and piece not in torn:
                problems.append(f"{piece}: missing")
    snapshots.sort(key=lambda snapshot: (snapshot.seq, snapshot.leg, POINTS.index(snapshot.point)))
    return tuple(snapshots), (*problems, *_disorder(snapshots, events))


def _required(case: Case) -> dict[int, tuple[str, ...]]:
    """Points by leg. The image is closed on all hosts once, at the end of the last leg."""
    required = {
        leg: tuple(point for point in points if point != "all-closed")
        for leg, points in case.points.items()
        if leg <= case.legs
    }
    required[case.legs] = (*required[case.legs], "all-closed")
    return required


def _disorder(snapshots: Sequence[Snapshot], events: Events) -> list[str]:
    """Snapshots whose place in time the rest of the record contradicts; `snapshots` by seq."""
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


def _snapshot(path: Path, room: int) -> tuple[Snapshot, int]:
    """With the size of its file in bytes."""
    match = _SNAPSHOT.fullmatch(path.name)
    if not match or match[2] not in POINTS:
        raise TornRecord("not the name of a metadata point")
    data = read_piece(path, min(room, LARGEST_PIECE))
    meta = strict.parse_object(data)
    if meta.get("schema") != 1:
        raise TornRecord(f"schema {meta.get('schema')!r} is not known, only 1")
    if strict.text(meta, "point") != match[2]:
        raise TornRecord(f"names another point, {meta['point']!r}")
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
        raise TornRecord("a block's number is no number")
    if not set(bitmaps) <= set(bat):
        raise TornRecord("a bitmap belongs to no block of the BAT")
    return Snapshot(int(match[1]), match[2], strict.integer(meta, "seq"), meta), len(data)


def _hex_or_null(source: strict.Object, key: str) -> None:
    value = source.get(key)
    try:
        if key in source and (value is None or bytes.fromhex(value) is not None):  # type: ignore[arg-type]
            return
    except (TypeError, ValueError):
        pass
    raise TornRecord(f"{key!r} is neither hexadecimal nor null")
