"""Changes of the hosts' holdings: files missing or of another time, lines added and removed."""

from collections.abc import Iterator
from typing import Any

from tests.tamper.draft import CONTRADICTS, DOUBTFUL, EITHER, SAME, Change, Draft

KINDS = (
    "locks", "lease", "keys", "sockets", "processes", "mounts", "loop", "nbd", "dm", "iscsi",
    "files",
)  # fmt: skip


def holdings_changes(draft: Draft) -> Iterator[Change]:
    """No changes for a record of schema 1."""
    names = list(draft.holdings)
    for name in names:
        yield from _one(draft, name)
    if not names:
        return
    yield Change("held: none", DOUBTFUL, lambda d: d.holdings.clear())
    yield Change("held: all at seq 0", CONTRADICTS, lambda d: _all(d, seq=0))
    yield Change("held: all at the end", CONTRADICTS, lambda d: _all(d, seq=len(d.events)))
    yield Change("held: all empty", CONTRADICTS, _empty)
    yield Change("harmless: held: lines in another order", SAME, _reversed)
    yield Change("harmless: held: kinds and fields of a later version", SAME, _more)


def _one(draft: Draft, name: str) -> Iterator[Change]:
    host, _, point = name.partition("-")
    yield Change(f"held {name}: gone", DOUBTFUL, lambda d: d.holdings.pop(name))
    for key, value in (("host", "gamma"), ("point", "later"), ("image", "/x"), ("schema", 2),
                       ("seq", 10**9), ("seq", None), ("epoch", -1)):  # fmt: skip
        yield Change(f"held {name}: {key} {value}", CONTRADICTS,
                     lambda d, k=key, v=value: d.holdings[name].update({k: v}))  # fmt: skip
    if point in ("before", "after"):
        yield Change(f"held {name}: a larger epoch", CONTRADICTS, lambda d: _later_epoch(d, name))
    for kind in KINDS:
        yield Change(f"held {name}: no {kind}", DOUBTFUL,
                     lambda d, kind=kind: d.holdings[name]["held"].pop(kind))  # fmt: skip
        # A host on which the guest runs holds things, and so may any host before the case.
        right = DOUBTFUL if point == "after" else EITHER
        yield Change(f"held {name}: one more of {kind}", right,
                     lambda d, kind=kind: _add(d, name, kind, f"{host}: a thing"))  # fmt: skip


def _add(draft: Draft, name: str, kind: str, thing: str) -> None:
    draft.holdings[name]["held"][kind].append(thing)


def _later_epoch(draft: Draft, name: str) -> None:
    draft.holdings[name]["epoch"] += 1


def _all(draft: Draft, **values: Any) -> None:
    for held in draft.holdings.values():
        held.update(values)


def _empty(draft: Draft) -> None:
    for held in draft.holdings.values():
        held["held"] = {kind: [] for kind in held["held"]}


def _reversed(draft: Draft) -> None:
    for held in draft.holdings.values():
        held["held"] = {k: v[::-1] for k, v in reversed(list(held["held"].items()))}


def _more(draft: Draft) -> None:
    for held in draft.holdings.values():
        held["later"] = [1]
        held["held"]["vfio"] = ["0000:00:1f.0"]
