"""Faults in copies of the snapshots, of the closed image's metadata, and of the allocations."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vhdtool.oracle.evidence.events import Event
from vhdtool.oracle.evidence.grammar import cite
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.event_edits import after, altered, renumbered, without
from vhdtool.oracle.planted.fault import Fault, Matches, at_block, bat_of, damaged_blocks, finds

Meta = Mapping[str, Any]
MANY = 40
"""Blocks reported after SUSPENDED: more than can have been late."""


def metadata_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Snapshots that contradict one another, the events or the image."""
    snapshots = evidence.record.snapshots
    if (
        len(snapshots) < 2
        or outcomes.metadata.of_severity("doubt")
        or not evidence.allocations.by_block
    ):
        return
    if not snapshots[0].meta["header"] or not snapshots[-1].meta["bat"]:
        return
    yield from _identities(evidence, snapshots)
    yield from _vanished(evidence, snapshots)
    yield from _closed_image(evidence, snapshots[-1])
    yield from _blocks(evidence, snapshots)
    yield from _sizes(evidence, snapshots)
    yield from _points(evidence, snapshots)
    yield from _allocations(evidence)


def _identities(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Each field that identifies the disk, changed in the last snapshot."""
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
        yield Fault("metadata", name, faulty, finds(code, text))


def _vanished(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Footer and header missing in the last snapshot, or in the first."""
    first, last = snapshots[0], snapshots[-1]
    if first.meta["footer"] is not None:
        bare = {**last.meta, "footer": None, "header": None}
        faulty = _last(evidence, snapshots, bare)
        yield Fault("metadata", "footer-gone", faulty, finds("footer-vanished", last.name))
        yield Fault("metadata", "header-gone", faulty, finds("header-vanished", last.name))
        late = replace(first, meta={**first.meta, "footer": None})
        faulty = evidence.with_snapshots((late, *snapshots[1:]))
        yield Fault("metadata", "footer-late", faulty, finds("footer-late", first.name))
    else:
        faulty = _last(evidence, snapshots, {**last.meta, "header": None})
        yield Fault("metadata", "header-gone", faulty, finds("header-vanished", last.name))
    empty = replace(first, meta={**first.meta, "header": None})
    faulty = evidence.with_snapshots((empty, *snapshots[1:]))
    yield Fault("metadata", "no-image-yet", faulty, finds("snapshot", "has no header"))
    problem = "planted: metadata of a point: missing"
    record = replace(evidence.record, snapshot_problems=(problem,))
    faulty = replace(evidence, record=record)
    yield Fault("metadata", "point-torn", faulty, finds("snapshot", problem))


def _closed_image(evidence: Evidence, last: Snapshot) -> Iterator[Fault]:
    """Each part of the closed image's metadata unlike in the last snapshot."""
    image: Meta | None = evidence.image_meta
    if image is None or last.point != "all-closed":
        return
    gone = replace(evidence, image_meta=None)
    yield Fault("metadata", "image-unreadable", gone, finds("image-unreadable"))
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
        yield Fault("metadata", f"other-{code}", faulty, finds(code))
    if evidence.allocations.units.have_sectors:
        matches = finds("block-place", f"the image has block {block} at")
        yield Fault("metadata", "image-block-moved", faulty, matches)
    free = _free(evidence, image)
    fields = {"bat": {**image["bat"], **free}}
    more = replace(evidence, image_meta={**image, **fields})
    yield Fault("metadata", "image-block-untold", more, _block(evidence, "block-untold", free))


def _free(evidence: Evidence, meta: Meta) -> dict[str, int]:
    """A BAT entry for a block that is not allocated, at the sector of another block."""
    entries = evidence.allocations.units.entries
    used = {int(key) // entries for key in meta["bat"]} | evidence.allocations.by_block.keys()
    free = next(block for block in range(len(used) + 1) if block not in used)
    return {str(free * entries): min(meta["bat"].values())}


def _block(evidence: Evidence, code: str, entry: Mapping[str, int], text: str = "") -> Matches:
    blocks = {int(key) // evidence.allocations.units.entries for key in entry}

    def matches(finding: Finding) -> bool:
        return finding.code == code and finding.block in blocks and text in finding.message

    return matches


def _blocks(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Snapshots without a block that was allocated, and with blocks that were not, or later."""
    last = snapshots[-1]
    allocated = sorted(evidence.allocations.by_block.values(), key=lambda event: event.seq)
    newest = _entry(evidence, last.meta, allocated[-1])
    if newest:
        left = {key: at for key, at in last.meta["bat"].items() if key not in newest}  # type: ignore[attr-defined]
        faulty = _last(evidence, snapshots, {**last.meta, "bat": left})
        named = _block(evidence, "block-missing", newest, last.name)
        yield Fault("metadata", "block-missing", faulty, named)
    free = _free(evidence, last.meta)
    more = {**last.meta, "bat": {**bat_of(last.meta), **free}}
    faulty = _last(evidence, snapshots, more)
    yield Fault(
        "metadata", "block-untold", faulty, _block(evidence, "block-untold", free, last.name)
    )
    early = snapshots[0]
    if newest and allocated[-1].seq > early.seq + 3 * MANY:
        shown = replace(early, meta={**early.meta, "bat": {**bat_of(early.meta), **newest}})
        faulty = evidence.with_snapshots((shown, *snapshots[1:]))
        named = _block(evidence, "block-early", newest, early.name)
        yield Fault("metadata", "block-early", faulty, named)
    for before, later in itertools.pairwise(snapshots):
        still = early.point == "source-quiesced" and before is early and later.leg == early.leg
        if still and later.point in ("source-closed", "destination-opened"):
            bat = bat_of(later.meta)
            block = max(bat, key=int)
            shown = replace(later, meta={**later.meta, "bat": {**bat, block: bat[block] + 1}})
            faulty = evidence.with_snapshots((before, shown, *snapshots[2:]))
            if before.meta["footer"] is not None:
                yield Fault("metadata", "still-changed", faulty, finds("still-changed", "`bat`"))


def _entry(evidence: Evidence, meta: Meta, event: Event) -> dict[str, int]:
    entries, block = evidence.allocations.units.entries, event.integer("block")
    return {key: at for key, at in meta["bat"].items() if int(key) // entries == block}


def _sizes(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    last = snapshots[-1]
    end = max(bat_of(last.meta).values()) * 512
    faulty = _last(evidence, snapshots, {**last.meta, "file_size": end})
    yield Fault("metadata", "size-short", faulty, finds("size-short", last.name))
    if evidence.allocations.units.have_sectors and last.point == "all-closed":
        size = int(str(last.meta["file_size"]))
        faulty = _last(evidence, snapshots, {**last.meta, "file_size": size + 512})
        releases = [e for e in evidence.record.events.items if e.integer("truncated_to")]
        if releases and releases[-1].integer("truncated_to") == size:
            yield Fault("metadata", "size-other", faulty, finds("size-other", last.name))


def _points(evidence: Evidence, snapshots: tuple[Snapshot, ...]) -> Iterator[Fault]:
    """Snapshots taken at another time than their name says, one of a point not due, one missing."""
    for name, seq in (("early", 0), ("late", 10**9)):
        moved = tuple(replace(snapshot, seq=seq) for snapshot in snapshots)
        faulty = evidence.with_snapshots(moved)
        for snapshot in snapshots:
            if name == "late" and snapshot.point == "all-closed":
                continue
            text = f"metadata/{snapshot.name}.json: taken at seq {seq}, due"
            yield Fault("metadata", f"{snapshot.name}-{name}", faulty, finds("point-place", text))
    extra = replace(snapshots[-1], leg=snapshots[-1].leg + 90)
    faulty = evidence.with_snapshots((*snapshots, extra))
    yield Fault("metadata", "point-undue", faulty, finds("point-place", f"{extra.name}.json: no"))
    faulty = evidence.with_snapshots(())
    for snapshot in snapshots:
        text = f"metadata/{snapshot.name}.json: missing"
        yield Fault("metadata", f"{snapshot.name}-gone", faulty, finds("point-missing", text))


def _allocations(evidence: Evidence) -> Iterator[Fault]:
    """Allocations reported twice, at other sectors, or while the guest was stopped."""
    items = list(evidence.record.events.items)
    blocks = [event for event in items if event.name == "allocated"]

    for event in blocks[-1:]:
        twice = replace(event)
        changed = renumbered(after(items, event, twice))
        matches = finds("allocated-twice", cite(changed.items[items.index(event) + 1]))
        yield Fault("metadata", "allocated-twice", evidence.with_events(changed), matches)
        sector = event.integer("sector") or 0
        if evidence.allocations.units.have_sectors:
            wrong = altered(event, sector=sector + 1)
            changed = renumbered([wrong if one is event else one for one in items])
            matches = finds("block-place", cite(event), f"at sector {sector + 1}")
            yield Fault("metadata", "sector-other", evidence.with_events(changed), matches)
    stops = [event for event in items if event.name == "suspended"]
    for stop in stops[:1]:
        before = [event for event in blocks if event.seq < stop.seq][-MANY:]
        if len(before) == MANY:
            moved = items
            for event in before:
                moved = without(moved, event)
            for event in reversed(before):
                moved = after(moved, stop, event)
            faulty = evidence.with_events(renumbered(moved))
            yield Fault("metadata", "block-late", faulty, finds("block-late"))


def _last(
    evidence: Evidence, snapshots: tuple[Snapshot, ...], meta: Mapping[str, object]
) -> Evidence:
    """The same with another content of the last snapshot."""
    return evidence.with_snapshots((*snapshots[:-1], replace(snapshots[-1], meta=meta)))


def snapshot_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """In a later snapshot: a BAT entry missing, a BAT entry moved, a bitmap bit cleared."""
    snapshots = evidence.record.snapshots
    damaged = damaged_blocks(outcomes)
    pairs = [
        (index, block)
        for index in range(len(snapshots) - 1, 0, -1)
        for block in sorted(_common(snapshots[index - 1].meta, snapshots[index].meta), key=int)
        if int(block) not in damaged
    ]
    for name, code, pick in (
        ("entry-gone", "bat-vanished", 0),
        ("entry-moved", "bat-moved", len(pairs) // 2),
        ("bit-gone", "bitmap-bit-lost", -1),
    ):
        if not pairs:
            return
        index, block = pairs[pick]
        meta: dict[str, Any] = dict(snapshots[index].meta)
        if name == "bit-gone" and meta["bitmaps"][block] is None:
            return  # a qcow2 image has no bitmaps
        if name == "bit-gone":
            # Only the last bit that is set.
            bits = int(meta["bitmaps"][block], 16)
            less = f"{bits & (bits - 1):0{len(meta['bitmaps'][block])}x}"
            meta["bitmaps"] = {**meta["bitmaps"], block: less}
        elif name == "entry-moved":
            meta["bat"] = {**meta["bat"], block: meta["bat"][block] + 1}
        else:
            meta["bat"] = {key: at for key, at in meta["bat"].items() if key != block}
            meta["bitmaps"] = {key: b for key, b in meta["bitmaps"].items() if key != block}
        changed = [*snapshots]
        changed[index] = replace(snapshots[index], meta=meta)
        faulty = evidence.with_snapshots(tuple(changed))
        yield Fault("metadata", name, faulty, at_block(code, int(block)))


def _common(before: Any, after: Any) -> list[str]:
    """Blocks that are equal in both snapshots; those with a bitmap have a bit that is set."""
    return [
        block
        for block, at in bat_of(before).items()
        if bat_of(after).get(block) == at
        and (before["bitmaps"].get(block, "") is None or before["bitmaps"][block].strip("0"))
        and before["bitmaps"].get(block) == after["bitmaps"].get(block)
    ]
