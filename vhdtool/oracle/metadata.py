"""The metadata oracle: between two snapshots of one image, metadata only ever grows.

A BAT entry never vanishes or moves, a bitmap bit never goes from 1 to 0, the disk stays the same
disk. The closed image must be equal to the last snapshot, and have every allocation that the hosts
reported for a block in which the guest had a write acknowledged.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image import qcow2
from vhdtool.image.meta import diff_monotonic, snapshot
from vhdtool.oracle.events import Events
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.snapshots import Snapshot
from vhdtool.oracle.view import View, kind_of


def judge_metadata(
    snapshots: Sequence[Snapshot],
    problems: Sequence[str],
    image: Mapping[str, object] | None,
    events: Events,
    acked_blocks: frozenset[int],
) -> Outcome:
    """`image`: the closed image's own metadata; `acked_blocks`: those with acknowledged writes.

    `snapshots` rise in seq. Problems of single files become doubts.
    """
    findings = [doubt("snapshot", problem) for problem in problems]
    if image is not None and image.get("header") and snapshots and not snapshots[0].meta["header"]:
        text = f"{snapshots[0].name} shows no image, so nothing can be compared with it"
        findings.append(doubt("snapshot", text))
    disordered = any("taken at seq" in problem for problem in problems)
    if not disordered:
        for before, after in itertools.pairwise(snapshots):
            findings += _compare(before.name, dict(before.meta), after.name, dict(after.meta))
    last = snapshots[-1] if snapshots and not disordered else None
    if image is not None and last is not None:
        if last.point == "all-closed":
            findings += _contradictions(last, image)
        else:
            findings += _compare(last.name, dict(last.meta), "the closed image", dict(image))
    if image is not None:
        findings += _allocations(events, image, acked_blocks)
    return Outcome.of(findings)


def image_metadata(view: View) -> tuple[dict[str, Any] | None, Finding | None]:
    """The closed image's metadata in JSON types, or the reason why it has none."""
    try:
        taken = qcow2.snapshot(view) if kind_of(view.name) == "qcow2" else snapshot(view)
        meta: dict[str, Any] = json.loads(json.dumps(taken))
        return meta, None
    except (VhdtoolError, OSError) as error:
        return None, doubt("unreadable", str(error))


def _compare(
    old_name: str, old: dict[str, Any], new_name: str, new: dict[str, Any]
) -> Iterator[Finding]:
    try:
        found = diff_monotonic(old, new)
    except VhdtoolError as error:
        yield doubt("snapshot", f"{old_name} and {new_name} cannot be compared: {error}")
        return
    for item in found:
        text = f"{item.message} (from {old_name} to {new_name})"
        yield Finding(item.code, text, "corrupt", item.block, item.sectors, item.offset)


def _contradictions(last: Snapshot, image: Mapping[str, object]) -> Iterator[Finding]:
    """The image was copied after the last snapshot, and nobody had it open: they must be equal."""
    for key in ("file_size", "footer", "header", "batmap"):
        if last.meta.get(key) != image.get(key):
            text = f"the image's {key} is {_short(image.get(key))}, {last.name} says "
            yield Finding(f"image-{key}", text + _short(last.meta.get(key)))
    for key in ("bat", "bitmaps"):
        then, now = last.meta[key], image[key]
        assert isinstance(then, dict)
        assert isinstance(now, dict)
        for block in sorted(then.keys() | now.keys(), key=int):
            if then.get(block) != now.get(block):
                text = f"block {block}: the image's {key} entry differs from {last.name}: "
                detail = f"{_short(now.get(block))} now, {_short(then.get(block))} then"
                yield Finding(f"image-{key}", text + detail, block=int(block))


def _short(value: object) -> str:
    if value is None:
        return "absent"
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."


def _allocations(
    events: Events, image: Mapping[str, object], acked_blocks: frozenset[int]
) -> Iterator[Finding]:
    """An allocation that the guest relies on must be in the image, where it was made.

    A doubt, not proof: what such an allocation held is the content oracle's business, and events
    that disagree with an image whose data is whole speak against the events.
    """
    bat = image["bat"]
    assert isinstance(bat, dict)
    made: dict[int, list[tuple[int, str]]] = {}
    for event in events.named("allocated"):
        block, sector = event.integer("block"), event.integer("sector")
        assert block is not None
        assert sector is not None
        made.setdefault(block, []).append((sector, event.host))
    for block, places in sorted(made.items()):
        if block not in acked_blocks:
            continue
        now = bat.get(str(block))
        told = " and ".join(f"sector {sector} by {host}" for sector, host in places)
        if len({sector for sector, _ in places}) > 1:
            text = f"block {block} was allocated more than once: at {told}"
            yield Finding("allocated-twice", text, "doubt", block)
        elif now is None:
            text = f"block {block} was allocated at {told}, acknowledged, and is gone"
            yield Finding("allocation-lost", text, "doubt", block)
        elif now != places[0][0]:
            text = f"block {block} was allocated at {told} and is at sector {now} now"
            yield Finding("allocation-moved", text, "doubt", block)
