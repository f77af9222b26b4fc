"""The metadata oracle: from one snapshot of an image to the next, metadata only grows.

A BAT entry never vanishes or moves, a bitmap bit never changes from 1 to 0, and the disk stays the
same disk. The closed image must be equal to the last snapshot. Each snapshot, and the image, must
show the blocks that the shims had allocated by then, and no others.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image.metadata.dump import dump_metadata
from vhdtool.oracle.checks.growth import Meta, lost_metadata
from vhdtool.oracle.contradictions.allocations import check_allocations
from vhdtool.oracle.contradictions.snapshot_points import check_snapshot_points
from vhdtool.oracle.evidence.allocations import Allocations
from vhdtool.oracle.evidence.case import image_format
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.readers import qcow2
from vhdtool.oracle.readers.image_view import View


def check_metadata(
    snapshots: Sequence[Snapshot],
    problems: Sequence[str],
    image: Mapping[str, object] | None,
    events: Events,
    legs: Sequence[Leg],
    allocations: Allocations,
) -> Outcome:
    """Judges the snapshots, which rise in seq. `image`: the metadata of the closed image.

    `problems` of the snapshots' files become doubts.
    """
    findings = [doubt("snapshot", problem) for problem in problems]
    if image is not None and image.get("header") and snapshots and not snapshots[0].meta["header"]:
        text = f"metadata/{snapshots[0].name}.json has no header, so that nothing is compared"
        findings.append(doubt("snapshot", text))
    findings += _without_footer(snapshots)
    disordered = any("taken at seq" in problem for problem in problems)
    if not disordered:
        for before, after in itertools.pairwise(snapshots):
            findings += lost_metadata(before.name, before.meta, after.name, after.meta)
    last = snapshots[-1] if snapshots and not disordered else None
    if image is not None and last is not None:
        if last.point == "all-closed":
            findings += _differences(last, image)
        else:
            findings += lost_metadata(last.name, last.meta, "the closed image", image)
    findings += check_snapshot_points(snapshots, events, legs)
    findings += check_allocations(allocations, events, legs, snapshots, image)
    return Outcome.of(findings)


def image_metadata(view: View) -> tuple[dict[str, Any] | None, Finding | None]:
    """The metadata of the closed image in JSON types, or a doubt why it cannot be read."""
    try:
        of_qcow2 = image_format(view.name) == "qcow2"
        taken = qcow2.meta_of(view) if of_qcow2 else dump_metadata(view)
        meta: dict[str, Any] = json.loads(json.dumps(taken))
        return meta, None
    except (VhdtoolError, OSError) as error:
        return None, doubt("unreadable", str(error))


def _without_footer(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """Snapshots without a footer before one with a footer: a VHD has its footer from the start."""
    seen = next((one for one in snapshots if one.meta.get("footer")), None)
    for one in snapshots:
        if seen is None or one is seen:
            return
        text = f"metadata/{one.name}.json has no footer, metadata/{seen.name}.json has one"
        yield doubt("footer-late", text)


def _differences(last: Snapshot, image: Mapping[str, object]) -> Iterator[Finding]:
    """The image was copied after the last snapshot, while it was closed: they must be equal."""
    for key in ("file_size", "footer", "header", "batmap"):
        then, now = last.meta.get(key), image.get(key)
        if isinstance(then, dict) and isinstance(now, dict):
            yield from _fields(key, then, now, last.name)
        elif key in last.meta and then != now:
            text = f"`{key}` is {_short(now)} in the image, {_short(then)} in {last.name}"
            yield Finding(f"image-{key}", text)
    for key in ("bat", "bitmaps"):
        then, now = last.meta[key], image[key]
        assert isinstance(then, dict)
        assert isinstance(now, dict)
        for block in sorted(then.keys() | now.keys(), key=int):
            if then.get(block) != now.get(block):
                text = f"block {block} in `{key}` is {_short(now.get(block))} in the image, "
                detail = f"{_short(then.get(block))} in {last.name}"
                yield Finding(f"image-{key}", text + detail, block=int(block))


def _fields(key: str, then: Meta, now: Meta, name: str) -> Iterator[Finding]:
    """Compares the fields that both have: another version may have written one of them."""
    for field in sorted(then.keys() & now.keys()):
        if then[field] != now[field]:
            text = f"`{key}.{field}` is {_short(now[field])} in the image, "
            yield Finding(f"image-{key}", f"{text}{_short(then[field])} in {name}")


def _short(value: object) -> str:
    if value is None:
        return "absent"
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
