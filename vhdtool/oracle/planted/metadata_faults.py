"""Faults to plant in copies of the snapshots and of the closed image's metadata."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vhdtool.oracle.evidence.events import Event
from vhdtool.oracle.evidence.grammar import line
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.event_faults import after, numbered, says, with_, without
from vhdtool.oracle.planted.faults import Fault

Meta = Mapping[str, Any]
MANY = 40
"""Blocks told behind SUSPENDED: more than can have been on their way."""


def metadata_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """Snapshots that contradict one another, the events or the image."""
    snapshots = evidence.record.snapshots
    if len(snapshots) < 2 or judged.metadata.worst("doubt") or not evidence.told.first:
        return
    if not snapshots[0].meta["header"] or not snapshots[-1].meta["bat"]:
        return
    yield from _identities(evidence, snapshots)
    yield from _vanished(evidence, snapshots)
    yield from _closed_image(evidence, snapshots[-1])
    yield from _blocks(evidence, snapshots)
    yield from _sizes(evidence, snapshots)
    yield from _places(evidence, snapshots)
    yield from _told(evidence)


def _identities(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Each field by which a disk stays the same disk, in the last snapshot."""
    meta = dict(snapshots[-1].meta)
    named = []
    for part, keys in (
        ("footer", ("uuid", "current_size", "type")),
        ("header", ("block_bytes", "bat_offset", "max_entries", "parent_uuid")),
    ):
        fields = meta[part]
        if isinstance(fields, dict):
            known = [key for key in keys if key in fields]
            meta[part] = {**fields, **dict.fromkeys(known, 7)}
            named += [(f"{part}-{key}", f"{part}-identity-changed", f"{key} ch") for key in known]
    faulty = _last(evidence, snapshots, meta)
    for name, code, text in named:
        yield Fault("metadata", name, faulty, says(code, text))


def _vanished(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Footer and header gone from the last snapshot, or not yet in the first."""
    first, last = snapshots[0], snapshots[-1]
    if first.meta["footer"] is not None:
        bare = {**last.meta, "footer": None, "header": None}
        faulty = _last(evidence, snapshots, bare)
        yield Fault("metadata", "footer-gone", faulty, says("footer-vanished", last.name))
        yield Fault("metadata", "header-gone", faulty, says("header-vanished", last.name))
        late = replace(first, meta={**first.meta, "footer": None})
        faulty = evidence.with_snapshots((late, *snapshots[1:]))
        yield Fault("metadata", "footer-late", faulty, says("footer-late", first.name))
    else:
        faulty = _last(evidence, snapshots, {**last.meta, "header": None})
        yield Fault("metadata", "header-gone", faulty, says("header-vanished", last.name))
    empty = replace(first, meta={**first.meta, "header": None})
    faulty = evidence.with_snapshots((empty, *snapshots[1:]))
    yield Fault("metadata", "no-image-yet", faulty, says("snapshot", "shows no image"))
    problem = "planted: metadata of a point: missing"
    record = replace(evidence.record, snapshot_problems=(problem,))
    faulty = replace(evidence, record=record)
    yield Fault("metadata", "point-torn", faulty, says("snapshot", problem))


def _closed_image(evidence: Evidence, last: Snapshot) -> Iterator[Fault]:
    """The image is not what the last snapshot shows, in each part of it."""
    image: Meta | None = evidence.image_meta
    if image is None or last.point != "all-closed":
        return
    gone = replace(evidence, image_meta=None)
    yield Fault("metadata", "image-unreadable", gone, says("image-unreadable"))
    block = max(image["bat"], key=int)
    other = dict(image)
    other["file_size"] = image["file_size"] + 512
    other["bat"] = {**image["bat"], block: image["bat"][block] + 1}
    codes = ["image-file_size", "image-bat"]
    for key in ("footer", "header"):
        if image[key] is not None:
            other[key] = {**image[key], next(reversed(image[key])): "planted"}
            codes.append(f"image-{key}")
    if image["bitmaps"][block]:
        bits = image["bitmaps"][block]
        other["bitmaps"] = {**image["bitmaps"], block: "5" * len(bits)}
        codes.append("image-bitmaps")
    if image["batmap"]:
        other["batmap"] = "5" * len(image["batmap"])
        codes.append("image-batmap")
    faulty = replace(evidence, image_meta=other)
    for code in codes:
        yield Fault("metadata", f"other-{code}", faulty, says(code))
    if evidence.told.placed:
        place = says("block-place", f"the image has block {block} at")
        yield Fault("metadata", "image-block-moved", faulty, place)
    free = _free(evidence, image)
    fields = {"bat": {**image["bat"], **free}}
    more = replace(evidence, image_meta={**image, **fields})
    yield Fault("metadata", "image-block-untold", more, _block(evidence, "block-untold", free))


def _free(evidence: Evidence, meta: Meta) -> dict[str, int]:
    """An entry for a block that nobody has, at a place that is somebody's."""
    unit = evidence.told.unit
    used = {int(key) // unit for key in meta["bat"]} | evidence.told.first.keys()
    free = next(block for block in range(len(used) + 1) if block not in used)
    return {str(free * unit): min(meta["bat"].values())}


def _block(evidence: Evidence, code: str, entry: Mapping[str, int], text: str = "") -> Any:
    blocks = {int(key) // evidence.told.unit for key in entry}

    def names(finding: Finding) -> bool:
        return finding.code == code and finding.block in blocks and text in finding.message

    return names


def _blocks(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Blocks of other times in a snapshot, and none of those that were told."""
    last = snapshots[-1]
    told = sorted(evidence.told.first.values(), key=lambda event: event.seq)
    newest = _entry(evidence, last.meta, told[-1])
    if newest:
        left = {key: at for key, at in last.meta["bat"].items() if key not in newest}  # type: ignore[attr-defined]
        faulty = _last(evidence, snapshots, {**last.meta, "bat": left})
        named = _block(evidence, "block-missing", newest, last.name)
        yield Fault("metadata", "block-missing", faulty, named)
    free = _free(evidence, last.meta)
    more = {**last.meta, "bat": {**_bat(last), **free}}
    faulty = _last(evidence, snapshots, more)
    yield Fault(
        "metadata", "block-untold", faulty, _block(evidence, "block-untold", free, last.name)
    )
    early = snapshots[0]
    if newest and told[-1].seq > early.seq + 3 * MANY:
        shown = replace(early, meta={**early.meta, "bat": {**_bat(early), **newest}})
        faulty = evidence.with_snapshots((shown, *snapshots[1:]))
        named = _block(evidence, "block-early", newest, early.name)
        yield Fault("metadata", "block-early", faulty, named)
    for before, later in itertools.pairwise(snapshots):
        still = early.point == "source-quiesced" and before is early and later.leg == early.leg
        if still and later.point in ("source-closed", "destination-opened"):
            block = max(_bat(later), key=int)
            entry = {**_bat(later), block: _bat(later)[block] + 1}
            shown = replace(later, meta={**later.meta, "bat": entry})
            faulty = evidence.with_snapshots((before, shown, *snapshots[2:]))
            if before.meta["footer"] is not None:
                yield Fault("metadata", "still-changed", faulty, says("still-changed", "`bat`"))


def _bat(snapshot: Snapshot) -> dict[str, int]:
    bat: Any = snapshot.meta["bat"]
    return dict(bat)


def _entry(evidence: Evidence, meta: Meta, event: Event) -> dict[str, int]:
    unit, block = evidence.told.unit, event.integer("block")
    return {key: at for key, at in meta["bat"].items() if int(key) // unit == block}


def _sizes(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    last = snapshots[-1]
    end = max(_bat(last).values()) * 512
    faulty = _last(evidence, snapshots, {**last.meta, "file_size": end})
    yield Fault("metadata", "size-short", faulty, says("size-short", last.name))
    if evidence.told.placed and last.point == "all-closed":
        size = int(str(last.meta["file_size"]))
        faulty = _last(evidence, snapshots, {**last.meta, "file_size": size + 512})
        releases = [e for e in evidence.record.events.items if e.integer("truncated_to")]
        if releases and releases[-1].integer("truncated_to") == size:
            yield Fault("metadata", "size-other", faulty, says("size-other", last.name))


def _places(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Snapshots of another time than their name says, one that nobody asked for, one gone."""
    for name, seq in (("early", 0), ("late", 10**9)):
        moved = tuple(replace(snapshot, seq=seq) for snapshot in snapshots)
        faulty = evidence.with_snapshots(moved)
        for snapshot in snapshots:
            if name == "late" and snapshot.point == "all-closed":
                continue
            text = f"metadata/{snapshot.name}.json: taken at seq {seq};"
            yield Fault("metadata", f"{snapshot.name}-{name}", faulty, says("point-place", text))
    extra = replace(snapshots[-1], leg=snapshots[-1].leg + 90)
    faulty = evidence.with_snapshots((*snapshots, extra))
    yield Fault("metadata", "point-undue", faulty, says("point-place", f"{extra.name}.json: no"))
    faulty = evidence.with_snapshots(())
    for snapshot in snapshots:
        text = f"metadata/{snapshot.name}.json: missing"
        yield Fault("metadata", f"{snapshot.name}-gone", faulty, says("point-missing", text))


def _told(evidence: Evidence) -> Iterator[Fault]:
    """Allocations that were told twice, at other places, or while the guest stood still."""
    items = list(evidence.record.events.items)
    blocks = [event for event in items if event.name == "allocated"]
    for event in blocks[-1:]:
        twice = replace(event)
        changed = numbered(after(items, event, twice))
        said = line(changed.items[items.index(event) + 1])
        yield Fault(
            "metadata", "allocated-twice", evidence.with_events(changed),
            says("allocated-twice", said),
        )  # fmt: skip
        sector = event.integer("sector") or 0
        if evidence.told.placed:
            wrong = with_(event, sector=sector + 1)
            changed = numbered([wrong if one is event else one for one in items])
            named = says("block-place", f"told of sector {sector + 1}")
            faulty = evidence.with_events(changed)
            yield Fault("metadata", "told-elsewhere", faulty, named)
    stops = [event for event in items if event.name == "suspended"]
    for stop in stops[:1]:
        before = [event for event in blocks if event.seq < stop.seq][-MANY:]
        if len(before) == MANY:
            moved = items
            for event in before:
                moved = without(moved, event)
            for event in reversed(before):
                moved = after(moved, stop, event)
            faulty = evidence.with_events(numbered(moved))
            yield Fault("metadata", "block-late", faulty, says("block-late"))


def _last(
    evidence: Evidence, snapshots: tuple[Snapshot, ...], meta: Mapping[str, object]
) -> Evidence:
    """The same with another content of the last snapshot."""
    return evidence.with_snapshots((*snapshots[:-1], replace(snapshots[-1], meta=meta)))
