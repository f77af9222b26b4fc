"""Changes of the snapshots: missing, exchanged, with another seq, other fields."""

import itertools
from collections.abc import Iterator
from typing import Any

from tests.tamper.draft import CONTRADICTS, EITHER, SAME, Change, Draft

LIVE = ("source-quiesced", "destination-wrote")
"""Points at which a shim has the image open."""


def snapshot_changes(draft: Draft) -> Iterator[Change]:
    names = list(draft.metadata)
    for name in names:
        yield from _one(draft, name)
    for one, other in itertools.permutations(names, 2):
        yield from _exchanged(draft, one, other)
    yield Change("snapshots: all at seq 0", CONTRADICTS, lambda d: _seqs(d, lambda seq: 0))
    yield Change("snapshots: all at the end", CONTRADICTS,
                 lambda d: _seqs(d, lambda seq: len(d.events)))  # fmt: skip
    yield Change("snapshots: none", CONTRADICTS, lambda d: d.metadata.clear())
    yield Change("snapshots: none, and no point asked for", CONTRADICTS, _none)
    for place in (0, -1):
        yield Change(f"snapshots: block {place} in none", CONTRADICTS,
                     lambda d, place=place: _nowhere(d, place))  # fmt: skip


def _one(draft: Draft, name: str) -> Iterator[Change]:
    meta = draft.metadata[name]
    point = name.partition("-")[2]
    yield Change(f"{name}: gone", CONTRADICTS, lambda d: _gone(d, name, waive=False))
    yield Change(f"{name}: gone and waived", CONTRADICTS, lambda d: _gone(d, name, waive=True))
    # QEMU writes the tables of a live image at any time.
    lags = draft.kind == "qcow2" and point in (*LIVE, "destination-opened")
    seqs = {0, meta["seq"] - 1, meta["seq"] + 40, len(draft.events), 10**9} - {meta["seq"]}
    for seq in sorted(seqs):
        # Between two operations any seq is right.
        near = point == "destination-wrote" and abs(seq - meta["seq"]) < 300 and seq
        # Blocks that QEMU's tables lack may have been reported before: nothing dates the snapshot.
        near = near or (lags and meta["seq"] < seq < _next_step(draft, meta["seq"]))
        right = EITHER if near else CONTRADICTS
        yield Change(f"{name}: at seq {seq}", right,
                     lambda d, seq=seq: d.metadata[name].update(seq=seq))  # fmt: skip
    sizes: tuple[int, ...] = (0, 512)
    if draft.kind == "vhd" and point not in (*LIVE, "destination-opened"):
        sizes += (meta["file_size"] + 512, meta["file_size"] - 512)
    for size in sizes:
        yield Change(f"{name}: file_size {size}", CONTRADICTS,
                     lambda d, size=size: d.metadata[name].update(file_size=size))  # fmt: skip
    some = sorted(meta["bat"], key=int)
    for block in (some[0], some[len(some) // 2], some[-1]):
        yield Change(f"{name}: block {block} gone", EITHER if lags else CONTRADICTS,
                     lambda d, block=block: _without(d, name, block))  # fmt: skip
        for by in (1, 8, 4104):
            yield Change(f"{name}: block {block} moved by {by}", CONTRADICTS,
                         lambda d, block=block, by=by: _moved(d, name, block, by))  # fmt: skip
    free = str(next(b for b in range(1 << 20) if str(b) not in meta["bat"]))
    yield Change(f"{name}: block {free} too early", CONTRADICTS,
                 lambda d: _add(d, name, free))  # fmt: skip
    if meta["bitmaps"][some[0]]:
        # A bit that no earlier snapshot shows may have been set later.
        known = [m for m in draft.metadata.values() if m["seq"] < meta["seq"]]
        seen = point == "all-closed" or any(some[0] in m["bat"] for m in known)
        yield Change(f"{name}: a bit gone", CONTRADICTS if seen else EITHER,
                     lambda d: _bit(d, name, some[0], False))  # fmt: skip
        partial = [b for b in some if set(meta["bitmaps"][b]) != {"f"}]
        if partial:
            yield Change(f"{name}: a bit more", CONTRADICTS,
                         lambda d: _bit(d, name, partial[-1], True))  # fmt: skip
    for part in ("footer", "header"):
        if meta[part] is None:
            continue
        for key, value in (("uuid", "0" * 36), ("current_size", 512), ("block_bytes", 3 << 20)):
            if key in meta[part]:
                yield Change(f"{name}: {part}.{key}", CONTRADICTS, _field(name, part, key, value))
        yield Change(f"{name}: no {part}", CONTRADICTS,
                     lambda d, part=part: d.metadata[name].update({part: None}))  # fmt: skip
        yield Change(f"harmless: {name}: {part} of a later version", SAME,
                     _field(name, part, "later", 1))  # fmt: skip
        old = "creator_os" if part == "footer" else "version"
        if old in meta[part]:
            yield Change(f"harmless: {name}: {part} of an earlier version", SAME,
                         lambda d, part=part, old=old: d.metadata[name][part].pop(old))  # fmt: skip
    yield Change(f"harmless: {name}: a field of a later version", SAME,
                 lambda d: d.metadata[name].update(later={"a": [1]}))  # fmt: skip
    yield Change(f"{name}: schema 2", CONTRADICTS, lambda d: d.metadata[name].update(schema=2))
    yield Change(f"{name}: a key twice", CONTRADICTS, raw=lambda d: _twice(d, name))


def _exchanged(draft: Draft, one: str, other: str) -> Iterator[Change]:
    """The content of one snapshot under the name and number of the other."""
    a, b = draft.metadata[one], draft.metadata[other]
    if (a["bat"], a["bitmaps"]) == (b["bat"], b["bitmaps"]):
        # Nothing was written between them; only a size that was reported can differ.
        return

    def apply(d: Draft) -> None:
        keep = {key: d.metadata[one][key] for key in ("seq", "point")}
        d.metadata[one] = {**d.metadata[other], **keep}

    if _in_time(draft, a, b):
        yield Change(f"{one}: shows {other}", EITHER, apply)
        return
    less = a["seq"] > b["seq"] and draft.kind == "qcow2" and a["point"] in LIVE
    yield Change(f"{one}: shows {other}", EITHER if less else CONTRADICTS, apply)


def _in_time(draft: Draft, a: Any, b: Any) -> bool:
    """Whether all blocks of `b` were reported before the next operation after `a`.

    Taking a snapshot takes time, and it shows blocks that were allocated meanwhile.
    """
    if a["seq"] > b["seq"]:
        return False
    later = [
        draft.events[n]["seq"] for n in draft.operations() if draft.events[n]["seq"] > a["seq"]
    ]
    if draft.kind != "vhd":
        # No event says where QEMU puts a block: at the step that follows, `b` may be true of `a`.
        return bool(later) and b["seq"] <= later[0]
    seqs = {e["block"]: e["seq"] for e in draft.events if e["event"] == "allocated"}
    newest = max((seqs[int(block)] for block in b["bat"].keys() - a["bat"].keys()), default=0)
    return bool(later) and newest <= later[0] + 32


def _next_step(draft: Draft, seq: int) -> int:
    """`seq` of the first operation after `seq`."""
    numbers = (draft.events[n]["seq"] for n in draft.operations())
    return next((number for number in numbers if number > seq), len(draft.events))


def _gone(draft: Draft, name: str, waive: bool) -> None:
    del draft.metadata[name]
    leg, _, point = name.partition("-")
    points = draft.case.get("points")
    if waive and points and point in points.get(leg, []):
        points[leg].remove(point)
    elif waive and not points:
        rest = [p for p in ("source-quiesced", "source-closed", "destination-opened",
                            "destination-wrote", "all-closed") if p != point]  # fmt: skip
        draft.case["points"] = {str(n): rest for n in range(1, draft.case["legs"] + 1)}


def _none(draft: Draft) -> None:
    draft.metadata.clear()
    draft.case["points"] = {str(n): [] for n in range(1, draft.case["legs"] + 1)}


def _seqs(draft: Draft, new: Any) -> None:
    for meta in draft.metadata.values():
        meta["seq"] = new(meta["seq"])


def _without(draft: Draft, name: str, block: str) -> None:
    for key in ("bat", "bitmaps"):
        draft.metadata[name][key].pop(block, None)


def _nowhere(draft: Draft, place: int) -> None:
    last = list(draft.metadata.values())[-1]
    block = sorted(last["bat"], key=int)[place]
    for name in draft.metadata:
        _without(draft, name, block)


def _moved(draft: Draft, name: str, block: str, by: int) -> None:
    draft.metadata[name]["bat"][block] += by


def _add(draft: Draft, name: str, block: str) -> None:
    meta = draft.metadata[name]
    meta["bat"][block] = max(meta["bat"].values()) + 8
    meta["bitmaps"][block] = next(iter(meta["bitmaps"].values()))


def _bit(draft: Draft, name: str, block: str, value: bool) -> None:
    bitmaps = draft.metadata[name]["bitmaps"]
    bits = bytearray.fromhex(bitmaps[block])
    done = 0xFF if value else 0
    at = next(n for n, byte in enumerate(bits) if byte != done)
    bits[at] = 0xFF if value else 0
    bitmaps[block] = bits.hex()


def _field(name: str, part: str, key: str, value: object) -> Any:
    return lambda d: d.metadata[name][part].update({key: value})


def _twice(draft: Draft, name: str) -> None:
    path = draft.path / "metadata" / f"{name}.json"
    path.write_text('{"schema": 1, ' + path.read_text().lstrip("{"))
