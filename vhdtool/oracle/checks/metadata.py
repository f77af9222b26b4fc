"""The metadata oracle: between two snapshots of one image, metadata only ever grows.

A BAT entry never vanishes or moves, a bitmap bit never goes from 1 to 0, the disk stays the same
disk. The closed image must be equal to the last snapshot. Snapshots and image must show the
allocations that the hosts told of, each snapshot those of its time, and no others.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image.metadata.dump import dump_metadata
from vhdtool.oracle.checks.growth import Meta, growth
from vhdtool.oracle.contradictions.blocks import Told, blocks
from vhdtool.oracle.contradictions.points import points
from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.readers import qcow2
from vhdtool.oracle.readers.image_view import View, kind_of


def judge_metadata(
    snapshots: Sequence[Snapshot],
    problems: Sequence[str],
    image: Mapping[str, object] | None,
    events: Events,
    attempts: Sequence[Attempt],
    told: Told,
) -> Outcome:
    """`image`: the closed image's own metadata; `told`: the allocations that the events tell of.

    `snapshots` rise in seq. Problems of single files become doubts.
    """
    findings = [doubt("snapshot", problem) for problem in problems]
    if image is not None and image.get("header") and snapshots and not snapshots[0].meta["header"]:
        text = f"{snapshots[0].name} shows no image, so nothing can be compared with it"
        findings.append(doubt("snapshot", text))
    findings += _without_footer(snapshots)
    disordered = any("taken at seq" in problem for problem in problems)
    if not disordered:
        for before, after in itertools.pairwise(snapshots):
            findings += growth(before.name, before.meta, after.name, after.meta)
    last = snapshots[-1] if snapshots and not disordered else None
    if image is not None and last is not None:
        if last.point == "all-closed":
            findings += _contradictions(last, image)
        else:
            findings += growth(last.name, last.meta, "the closed image", image)
    findings += points(snapshots, events, attempts)
    findings += blocks(told, events, attempts, snapshots, image)
    return Outcome.of(findings)


def image_metadata(view: View) -> tuple[dict[str, Any] | None, Finding | None]:
    """The closed image's metadata in JSON types, or the reason why it has none."""
    try:
        taken = qcow2.meta_of(view) if kind_of(view.name) == "qcow2" else dump_metadata(view)
        meta: dict[str, Any] = json.loads(json.dumps(taken))
        return meta, None
    except (VhdtoolError, OSError) as error:
        return None, doubt("unreadable", str(error))


def _without_footer(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """A footer never appears: its copy at the start of a VHD is written once."""
    seen = next((one for one in snapshots if one.meta.get("footer")), None)
    for one in snapshots:
        if seen is None or one is seen:
            return
        text = f"metadata/{one.name}.json shows no footer, metadata/{seen.name}.json does"
        yield doubt("footer-late", text)


def _contradictions(last: Snapshot, image: Mapping[str, object]) -> Iterator[Finding]:
    """The image was copied after the last snapshot, and nobody had it open: they must be equal."""
    for key in ("file_size", "footer", "header", "batmap"):
        then, now = last.meta.get(key), image.get(key)
        if isinstance(then, dict) and isinstance(now, dict):
            yield from _fields(key, then, now, last.name)
        elif key in last.meta and then != now:
            text = f"the image's {key} is {_short(now)}, {last.name} says {_short(then)}"
            yield Finding(f"image-{key}", text)
    for key in ("bat", "bitmaps"):
        then, now = last.meta[key], image[key]
        assert isinstance(then, dict)
        assert isinstance(now, dict)
        for block in sorted(then.keys() | now.keys(), key=int):
            if then.get(block) != now.get(block):
                text = f"block {block}: the image's {key} entry differs from {last.name}: "
                detail = f"{_short(now.get(block))} now, {_short(then.get(block))} then"
                yield Finding(f"image-{key}", text + detail, block=int(block))


def _fields(key: str, then: Meta, now: Meta, name: str) -> Iterator[Finding]:
    """A field that one of the two does not have says nothing: another version wrote it."""
    for field in sorted(then.keys() & now.keys()):
        if then[field] != now[field]:
            text = f"the image's {key} has {field} {_short(now[field])}, {name} says "
            yield Finding(f"image-{key}", text + _short(then[field]))


def _short(value: object) -> str:
    if value is None:
        return "absent"
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
