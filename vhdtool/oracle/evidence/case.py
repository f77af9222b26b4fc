"""case.json: what was run, and the points at which metadata is dumped."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vhdtool.oracle.evidence import json_fields as strict
from vhdtool.oracle.evidence.json_fields import TornRecord

POINTS = (
    "source-quiesced",
    "source-closed",
    "destination-opened",
    "destination-wrote",
    "all-closed",
)
"""Points at which metadata is dumped, in the order that breaks ties of `seq`."""
SCHEMA = 3
"""Schema of the records that the lab writes now. Records of schema 1 have no held/; before schema 3
the write load has no deep half."""
EXPECTED = ("consistent", "corrupt", "refused")
LARGEST_DISK = 2040 << 30
MOST_HOSTS = 16
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
IMAGE_FORMATS = ("vhd", "qcow2", "raw")
_TEXTS = ("strategy", "direction", "storage", "hypervisor", "accelerator")


def image_format(name: str) -> str:
    """vhd, qcow2 or raw, by the suffix of an image's name."""
    suffix = name.rpartition(".")[2]
    return suffix if suffix in IMAGE_FORMATS else "raw"


@dataclass(frozen=True)
class Case:
    """case.json. Sizes in bytes; `points` maps a leg to the metadata points that it must have."""

    strategy: str
    guard: bool
    seed: int
    expected: str
    direction: str
    attempts: int
    image_bytes: int
    block_bytes: int
    image: str
    storage: str
    hypervisor: str
    accelerator: str
    legs: int
    hosts: tuple[str, ...]
    points: Mapping[int, tuple[str, ...]]
    error: str | None
    exclusive: bool = False
    """Whether the storage must keep the destination out while the source has the image."""
    schema: int = 1
    deep_blocks: int = 0
    """Blocks at the end of the disk that only the deep half of the load uses; 0 before schema 3."""
    frees: bool = True
    """Whether the deep half writes zeroes and discards."""
    live_check_failed: bool = False
    """Whether `error` is a failed live check of the hosts; the case ran to its end all the same."""

    @property
    def first_hosts(self) -> tuple[str, str] | None:
        """Source and destination of the first leg; None unless `direction` names two hosts."""
        source, arrow, destination = self.direction.partition("->")
        pair = (source.strip(), destination.strip())
        return pair if arrow and set(pair) <= set(self.hosts) and pair[0] != pair[1] else None


def parse_case(source: strict.Object) -> Case:
    """Parses case.json. Raises TornRecord for the first field that is absent or invalid."""
    schema = source.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise TornRecord(f"schema is {schema!r}; known are 1 to {SCHEMA}")
    expected = strict.text(source, "expected")
    if expected not in EXPECTED:
        raise TornRecord(f"'expected' is {expected[:40]!r}, not one of {', '.join(EXPECTED)}")
    legs = strict.integer(source, "legs", 1, 100)
    image_bytes = strict.integer(source, "image_bytes", 512, LARGEST_DISK)
    block_bytes = strict.integer(source, "block_bytes", 4096, 1 << 30)
    if image_bytes % 512 or block_bytes & (block_bytes - 1):
        raise TornRecord(
            "'image_bytes' is not a multiple of 512, or 'block_bytes' is not a power of two"
        )
    if image_bytes // block_bytes > 1 << 21:
        raise TornRecord("'image_bytes' / 'block_bytes' is more than 2 million blocks")
    image = strict.text(source, "image")
    if Path(image).name != image or image in (".", ".."):
        raise TornRecord(f"'image' is {image[:40]!r}, not the name of a file in the case directory")
    deep_blocks, frees = _deep(source, image_bytes // block_bytes) if schema >= 3 else (0, True)
    return Case(
        **{key: strict.text(source, key) for key in _TEXTS},
        schema=schema,
        guard=strict.boolean(source, "guard"),
        seed=strict.integer(source, "seed", 0, (1 << 64) - 1),
        attempts=strict.integer(source, "attempts", 1, 1000),
        expected=expected,
        image_bytes=image_bytes,
        block_bytes=block_bytes,
        image=image,
        legs=legs,
        deep_blocks=deep_blocks,
        frees=frees,
        hosts=_hosts(source.get("hosts")),
        points=_points(source.get("points"), legs),
        error=_error(source),
        live_check_failed=isinstance(source["error"], dict) and source["error"].get("look") is True,
        exclusive="exclusive" in source and strict.boolean(source, "exclusive"),
    )


def _deep(source: strict.Object, blocks: int) -> tuple[int, bool]:
    """(`deep_blocks`, `frees`), which records have from schema 3 on."""
    load = source.get("load")
    if not isinstance(load, dict):
        raise TornRecord("'load' is not an object")
    return strict.integer(load, "deep_blocks", 0, blocks), strict.boolean(load, "frees")


def _hosts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_HOSTS:
        raise TornRecord(f"'hosts' is not a list of 2 to {MOST_HOSTS} names")
    hosts = [host for host in value if isinstance(host, str) and HOST.fullmatch(host)]
    if len(hosts) != len(value) or len(set(hosts)) != len(hosts):
        raise TornRecord("'hosts' has an invalid name, or the same name twice")
    return tuple(hosts)


def _points(value: object, legs: int) -> dict[int, tuple[str, ...]]:
    if value is None:
        return dict.fromkeys(range(1, legs + 1), POINTS)
    if not isinstance(value, dict):
        raise TornRecord("'points' is not an object {leg: [points]}")
    points: dict[int, tuple[str, ...]] = {}
    for leg, names in value.items():
        known = isinstance(names, list) and all(name in POINTS for name in names)
        if not known or not leg.isdecimal():
            raise TornRecord(f"'points' of leg {leg[:10]!r} are not all metadata points")
        points[int(leg)] = tuple(names)
    if not set(range(1, legs + 1)) <= set(points):
        raise TornRecord("'points' does not cover every leg")
    return points


def _error(source: strict.Object) -> str | None:
    """The error of the lab in one line, or None. A value of another type is an error too."""
    if "error" not in source:
        raise TornRecord("'error' is absent")
    error = source["error"]
    if error is None:
        return None
    what = error.get("what") if isinstance(error, dict) else error
    log = error.get("log") if isinstance(error, dict) else None
    line = strict.one_line(what) or "unknown lab error"
    last = strict.one_line(log[-1]) if isinstance(log, list) and log else ""
    return f"{line}; the log ends: {last}" if last else line
