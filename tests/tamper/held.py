"""Changes of what the hosts held: looks dropped and re-timed, things added and taken away."""

from collections.abc import Iterator
from typing import Any

from tests.tamper.change import CONTRADICTS, DOUBTFUL, EITHER, SAME, Change
from tests.tamper.draft import Draft

KINDS = (
    "locks", "lease", "keys", "sockets", "processes", "mounts", "loop", "nbd", "dm", "iscsi",
    "files",
)  # fmt: skip


def held(draft: Draft) -> Iterator[Change]:
    """None in a record of schema 1."""
    names = list(draft.held)
    for name in names:
        yield from _one(draft, name)
    if not names:
        return
    yield Change("held: none", DOUBTFUL, lambda d: d.held.clear())
    yield Change("held: all at seq 0", CONTRADICTS, lambda d: _all(d, seq=0))
    yield Change("held: all at the end", CONTRADICTS, lambda d: _all(d, seq=len(d.events)))
    yield Change("held: all empty", CONTRADICTS, _empty)
    yield Change("harmless: held: lines in another order", SAME, _reversed)
    yield Change("harmless: held: kinds and fields of a later version", SAME, _more)


def _one(draft: Draft, name: str) -> Iterator[Change]:
    host, _, point = name.partition("-")
    yield Change(f"held {name}: gone", DOUBTFUL, lambda d: d.held.pop(name))
    for key, value in (("host", "gamma"), ("point", "later"), ("image", "/x"), ("schema", 2),
                       ("seq", 10**9), ("seq", None), ("epoch", -1)):  # fmt: skip
        yield Change(f"held {name}: {key} {value}", CONTRADICTS,
                     lambda d, k=key, v=value: d.held[name].update({k: v}))  # fmt: skip
    if point in ("before", "after"):
        yield Change(f"held {name}: an epoch more", CONTRADICTS,
                     lambda d: d.held[name].update(epoch=d.held[name]["epoch"] + 1))  # fmt: skip
    for kind in KINDS:
        yield Change(f"held {name}: no {kind} told", DOUBTFUL,
                     lambda d, kind=kind: d.held[name]["held"].pop(kind))  # fmt: skip
        # Where the guest runs, and before the case, things may be there.
        right = DOUBTFUL if point == "after" else EITHER
        yield Change(f"held {name}: one more of {kind}", right,
                     lambda d, kind=kind: _add(d, name, kind, f"{host}: a thing"))  # fmt: skip


def _add(draft: Draft, name: str, kind: str, thing: str) -> None:
    draft.held[name]["held"][kind].append(thing)


def _all(draft: Draft, **values: Any) -> None:
    for look in draft.held.values():
        look.update(values)


def _empty(draft: Draft) -> None:
    for look in draft.held.values():
        look["held"] = {kind: [] for kind in look["held"]}


def _reversed(draft: Draft) -> None:
    for look in draft.held.values():
        look["held"] = {k: v[::-1] for k, v in reversed(list(look["held"].items()))}


def _more(draft: Draft) -> None:
    for look in draft.held.values():
        look["later"] = [1]
        look["held"]["vfio"] = ["0000:00:1f.0"]
