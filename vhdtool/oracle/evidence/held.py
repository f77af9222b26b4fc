"""held/<host>-<point>.json: what a host held of the case at a point in time.

Points are `before` (the image is made, no shim runs), `leg-N` (the guest runs where leg N left it)
and `after` (the last shim has gone). The lines of a kind name things; two looks are compared line
by line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.files import names_in, read_piece
from vhdtool.oracle.evidence.json_fields import TornRecord

KINDS = (
    "locks", "lease", "keys", "sockets", "processes", "mounts", "loop", "nbd", "dm", "iscsi",
    "files",
)  # fmt: skip
_NAME = re.compile(r"(.+)-(before|after|leg-[1-9]\d{0,2})\.json")
_LARGEST = 1 << 20
_MOST = 1024


@dataclass(frozen=True)
class Held:
    """One look. `seq` is that of the last event before it, `epoch` the image's newest."""

    host: str
    point: str
    seq: int
    image: str
    epoch: int
    things: Mapping[str, tuple[str, ...]]

    @property
    def piece(self) -> str:
        return f"held/{self.host}-{self.point}.json"


def load_held(folder: Path) -> tuple[tuple[Held, ...], tuple[str, ...]]:
    """All looks, and what is wrong with the pieces that are there."""
    looks, problems = [], []
    for name in names_in(folder, _MOST):
        try:
            looks.append(_look(folder / name))
        except TornRecord as error:
            problems.append(f"held/{name}: {error}")
    return tuple(looks), tuple(problems)


def _look(path: Path) -> Held:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise TornRecord("not the name of a look at a host")
    source = strict.parse_object(read_piece(path, _LARGEST))
    if source.get("schema") != 1:
        raise TornRecord(f"schema {source.get('schema')!r} is not known, only 1")
    for key, said in (("host", match[1]), ("point", match[2])):
        if strict.text(source, key) != said:
            raise TornRecord(f"names another {key}, {source[key]!r}")
    held = source.get("held")
    if not isinstance(held, dict):
        raise TornRecord("'held' is not an object")
    return Held(
        match[1],
        match[2],
        strict.integer(source, "seq"),
        strict.text(source, "image"),
        strict.integer(source, "epoch"),
        {kind: _lines(held, kind) for kind in KINDS},
    )


def _lines(held: Mapping[str, object], kind: str) -> tuple[str, ...]:
    lines = held.get(kind)
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise TornRecord(f"{kind!r} is not a list of texts")
    return tuple(lines)
