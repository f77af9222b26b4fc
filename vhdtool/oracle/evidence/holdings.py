"""held/<host>-<point>.json: what a host held of the case at one point.

The points are `before` (the image is made, no shim runs), `leg-N` (the guest runs on the host where
leg N ended) and `after` (the last shim has gone). Each line of a kind names one thing, so that the
holdings of two points are compared line by line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.files import names_in, read_file
from vhdtool.oracle.evidence.json_fields import TornRecord

KINDS = (
    "locks", "lease", "keys", "sockets", "processes", "mounts", "loop", "nbd", "dm", "iscsi",
    "files",
)  # fmt: skip
_NAME = re.compile(r"(.+)-(before|after|leg-[1-9]\d{0,2})\.json")
_LARGEST = 1 << 20
_MOST = 1024


@dataclass(frozen=True)
class Holdings:
    """The holdings of one host at one point.

    `seq` is that of the last event before they were listed, `epoch` the newest of the image.
    """

    host: str
    point: str
    seq: int
    image: str
    epoch: int
    lines: Mapping[str, tuple[str, ...]]
    """Kind -> its lines."""

    @property
    def file_name(self) -> str:
        return f"held/{self.host}-{self.point}.json"


def load_holdings(folder: Path) -> tuple[tuple[Holdings, ...], tuple[str, ...]]:
    """All holdings, and the problems of files that cannot be used."""
    found, problems = [], []
    for name in names_in(folder, _MOST):
        try:
            found.append(_holdings(folder / name))
        except TornRecord as error:
            problems.append(f"held/{name}: {error}")
    return tuple(found), tuple(problems)


def _holdings(path: Path) -> Holdings:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise TornRecord("not a name of the form <host>-<point>.json")
    source = strict.parse_object(read_file(path, _LARGEST))
    if source.get("schema") != 1:
        raise TornRecord(f"schema is {source.get('schema')!r}; known is 1")
    for key, expected in (("host", match[1]), ("point", match[2])):
        if strict.text(source, key) != expected:
            raise TornRecord(f"its {key} is {source[key]!r}, unlike in its name")
    held = source.get("held")
    if not isinstance(held, dict):
        raise TornRecord("'held' is not an object")
    return Holdings(
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
        raise TornRecord(f"{kind!r} is not a list of strings")
    return tuple(lines)
