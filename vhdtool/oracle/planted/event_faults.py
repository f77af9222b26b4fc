"""Faults in copies of the events and of case.json: one for each rule of the record.

Each fault changes as few events as possible, and its finding must cite them. The fault of a rule
whose events a record does not have (a refusal, a reopen) is not planted in that record.
"""

from collections.abc import Iterator
from dataclasses import replace

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import CONTROLLER_HOST, FIRSTS, READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.grammar import cite, is_operation
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.event_edits import (
    Items,
    after,
    altered,
    first,
    last,
    renumbered,
    swapped,
    with_free_epochs,
    without,
)
from vhdtool.oracle.planted.fault import Fault, finds

LONG_AGO, FAR = -1e9, 1e9


def event_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Events that contradict the grammar, one another, or case.json."""
    events, case = evidence.record.events, evidence.record.case
    if not events.complete or case is None or outcomes.activation.of_severity("doubt"):
        return
    for name, code, text, items in _broken(list(events.items), case, evidence):
        changed = renumbered(items)
        # A finding cites an event by its line in the changed file.
        at = [n for n, event in enumerate(items) if event is text]
        cited = cite(changed.items[at[0]]) if at else str(text)
        yield Fault("activation", name, evidence.with_events(changed), finds(code, cited))
    lost = Events(events.items, ("planted: an event is missing",))
    yield Fault("activation", "events-torn", evidence.with_events(lost), finds("events"))
    for event in first(list(events.items), "allocated"):
        faulty = evidence.with_events(renumbered(without(list(events.items), event)))
        yield Fault("metadata", "allocation-missing", faulty, finds("block-untold"))
    yield from _case_json(evidence, case)


Broken = Iterator[tuple[str, str, Event | str, Items]]
"""(name, code of the finding, the event that it cites or a text in it, events)."""


def _broken(items: Items, case: Case, evidence: Evidence) -> Broken:
    yield from _legs(items)
    yield from _sides(items)
    yield from _shims(items)
    yield from _reads(items, case)
    yield from _releases(items)
    yield from _epochs(items)
    yield from _activity(items, evidence, case)


def _legs(items: Items) -> Broken:
    """The controller's events in another order."""
    for event in first(items, "migrate-started"):
        yield "leg-broken", "leg-order", "", without(items, event)
    for event in last(items, "suspended"):
        yield "leg-twice", "leg-order", (again := replace(event)), after(items, event, again)
    for event in last(items, "migrate-started"):
        turned = altered(event, direction="elsewhere->nowhere")
        yield "leg-direction", "leg-order", turned, swapped(items, event, turned)
    for event in last(items, "cancelled"):
        reasons = [e for e in items if e.name in ("refused", "fault-injected")]
        left = [e for e in items if e not in reasons and e.name != "resumed"]
        yield "cancel-without-reason", "leg-order", event, left
        refusals = [e for e in reasons if e.name == "refused"]
        if len(refusals) == len(reasons):
            wrong = [
                altered(e, host=_other(items, e), side="source") if e in refusals else e
                for e in items
            ]
            yield "cancel-reason-of-source", "leg-order", event, wrong
    controller = [e for e in items if e.pid is None]
    for event in controller[-1:]:
        early = altered(event, mono=LONG_AGO)
        yield "controller-clock", "time-falls", early, swapped(items, event, early)


def _sides(items: Items) -> Broken:
    """Legs, hosts and sides that contradict where the guest is."""
    end = items[-1]
    for name, values in (
        ("leg-number", {"leg": end.leg + 2}),
        ("side-swapped", {"side": "destination" if end.side == "source" else "source"}),
    ):
        wrong = altered(end, **values)
        yield name, "leg-place", wrong, swapped(items, end, wrong)
    for event in first(items, "allocated"):
        wrong = altered(event, leg=event.leg + 1)
        yield "leg-number-early", "leg-place", wrong, swapped(items, event, wrong)
    for event in last(items, "suspended"):
        there = _other(items, event)
        wrong = altered(event, host=there, side="destination")
        yield "suspended-elsewhere", "leg-place", wrong, swapped(items, event, wrong)
    for event in last(items, "attached"):
        wrong = altered(event, host=CONTROLLER_HOST, side="controller")
        yield "controller-attaches", "leg-place", wrong, swapped(items, event, wrong)


def _shims(items: Items) -> Broken:
    """The events of a shim in another order, and its times."""
    end = items[-1]
    for event in last(items, "detached"):
        yield (
            "never-detached",
            "shim-order",
            f"{event.who} is never detached",
            without(items, event),
        )
    for event in last(items, "allocated"):
        wrong = altered(event, pid=None)
        yield "no-process", "shim-order", wrong, swapped(items, event, wrong)
        yield "allocated-detached", "shim-order", event, [*without(items, event), event]
        foreign = altered(event, epoch=(event.epoch or 0) + 1000)
        yield "allocated-elsewhere", "shim-order", foreign, swapped(items, event, foreign)
    for event in last(items, *READS):
        for name, more in (
            ("opened-again", {"implicit": False}), ("activated-again", {}), ("unpaused-open", {}),
        ):  # fmt: skip
            kind = "opened" if "opened" in name else name.partition("-")[0]
            twice = altered(event, name=kind, **more)
            yield name, "shim-order", twice, after(items, event, twice)
    if end.pid is not None:
        early = altered(end, mono=LONG_AGO)
        yield "shim-clock", "shim-order", early, swapped(items, end, early)
    for key, names in (
        ("read_mono", READS), ("began_mono", ("activated", "unpaused")),
        ("last_metadata_mono", RELEASES),
    ):  # fmt: skip
        for event in last(items, *names):
            wrong = altered(event, **{key: FAR})
            yield f"{key}-later", "shim-order", wrong, swapped(items, event, wrong)


def _reads(items: Items, case: Case) -> Broken:
    """The events of a metadata read in another order, or twice."""
    for event in last(items, "first-request"):
        twice = replace(event)
        yield "first-request-twice", "shim-order", twice, after(items, event, twice)
        wrong = altered(event, epoch=0)
        yield "unknown-read", "unknown-read", event.who, swapped(items, event, wrong)
        release = next((e for e in items if e.who == event.who and e.name in RELEASES
                        and e.integer("ended") == event.epoch), None)  # fmt: skip
        if release is not None:
            late = after(without(items, event), release, event)
            yield "served-after-release", "served-after-release", event.who, late
    for event in last(items, "first-write"):
        twice = replace(event)
        yield "first-write-twice", "shim-order", twice, after(items, event, twice)
        requests = [e for e in items if e.name == "first-request" and e.who == event.who]
        for request in requests[-1:]:
            yield "no-first-request", "shim-order", event, without(items, request)
        blocks = [e for e in items if e.name == "allocated" and e.epoch == event.epoch]
        for block in blocks[:1]:
            yield "no-first-write", "shim-order", block, without(items, event)
    for event in last(items, "activated"):
        silent = replace(event, extra={k: v for k, v in event.extra.items() if k != "lease"})
        yield "lease-missing", "shim-order", silent, swapped(items, event, silent)
        if case.guard and any(e.who == event.who and e.name in FIRSTS for e in items):
            opened = altered(silent, name="opened")
            yield "no-lease", "no-lease", f"epoch {event.epoch}", swapped(items, event, opened)
        leased = altered(event, name="opened", lease=True)
        yield "open-with-lease", "shim-order", leased, swapped(items, event, leased)


def _releases(items: Items) -> Broken:
    """Releases of another metadata read, or at another epoch."""
    for event in [e for e in items if e.name in RELEASES and e.epoch][-1:]:
        yield "release-gone", "shim-order", "", without(items, event)
    releases = [e for e in items if e.name in RELEASES and e.epoch and e.integer("ended")]
    for event in releases[-1:]:
        for name, ended in (("ended-nothing", None), ("ended-other", 10**6)):
            wrong = altered(event, ended=ended)
            yield name, "shim-order", wrong, swapped(items, event, wrong)
        low = altered(event, epoch=event.integer("ended"))
        text = f"read at epoch {low.epoch}, and released at {low.epoch}"
        yield "released-at-its-read", "epoch-falls", text, swapped(items, event, low)
        yield "epoch-twice", "epoch-twice", f"epoch {low.epoch} ", swapped(items, event, low)
        yield "epoch-falls", "epoch-falls", f"{event.who} took epoch", swapped(items, event, low)


def _epochs(items: Items) -> Broken:
    """Epochs without an event, and in another order."""
    counted = [e for e in items if e.name in READS | RELEASES and e.epoch is not None]
    reads = [e for e in counted if e.name in READS]
    if reads and len(reads) < len(counted):
        free = [with_free_epochs(event, reads[0].epoch or 0) for event in items]
        yield "epoch-untold", "epoch-untold", "no event has epochs", free
    for event in counted[-1:]:
        up = altered(event, epoch=(event.epoch or 0) + 1)
        text = f"no event has epoch {event.epoch},"
        yield "one-epoch-missing", "epoch-untold", text, swapped(items, event, up)
    legs = [event for event in counted if event.leg == items[-1].leg and event.name in READS]
    if legs and any(event.leg < items[-1].leg and event.name in READS for event in counted):
        low = altered(legs[0], epoch=1)
        text = f"to leg {items[-1].leg}"
        yield "leg-epochs", "epoch-falls", text, swapped(items, legs[0], low)
    steps = [event for event in counted if is_operation(event)]
    for one, other in zip(steps[-2:-1], steps[-1:], strict=True):
        a, b = altered(one, epoch=other.epoch), altered(other, epoch=one.epoch)
        changed = swapped(swapped(items, one, a), other, b)
        yield "epoch-order", "epoch-order", b, changed


def _activity(items: Items, evidence: Evidence, case: Case) -> Broken:
    """Events that every migration has are missing, and events that contradict case.json."""
    starts = [e for e in items if e.name == "migrate-started"]
    rest = [e for e in items if e not in starts]
    yield "nothing-started", "nothing-started", "", rest
    yield "no-source", "no-source", "", [*starts[:1], *[e for e in items if e not in starts[:1]]]
    final = evidence.legs[-1] if evidence.legs else None
    if final is not None and final.moved:
        there = [
            e for e in items
            if not (e.name in FIRSTS and e.host == final.destination and e.leg == final.number)
        ]  # fmt: skip
        yield "no-destination", "no-destination", f"leg {final.number} ", there
    for event in last(items, "allocated"):
        fenced = altered(event, name="fenced")
        yield "fenced", "fenced", event.who, after(items, event, fenced)
    for event in last(items, "attached"):
        sized = altered(event, size=case.image_bytes + 512)
        yield "size-other", "case-size", sized, swapped(items, event, sized)
    for event in last(items, "suspended"):
        if not case.exclusive:
            tried = altered(event, name="kept-out")
            yield "kept-out-shared", "case-exclusive", tried, after(items, event, tried)
    takers = [e for e in items if e.extra.get("lease") is True]
    if case.guard and takers:
        silent = [altered(e, lease=False) if e is takers[-1] else e for e in items]
        yield "lease-not-taken", "case-guard", "took no lease", silent
        none = [replace(e, extra={k: v for k, v in e.extra.items() if k != "lease"}) for e in items]
        yield "no-lease-at-all", "case-guard", "no event took the lease", none
    elif not case.guard:
        for event in last(items, "activated", "unpaused"):
            leased = altered(event, lease=True)
            yield "lease-taken", "case-guard", leased, swapped(items, event, leased)


def _case_json(evidence: Evidence, case: Case) -> Iterator[Fault]:
    """Another case.json, and another command in reproduce.txt."""
    guard = "off" if case.guard else "on"
    command = f"make lab STRATEGY=another-one SEED={case.seed + 1} GUARD={guard}"
    record = replace(evidence.record, reproduce=command)
    for key in ("STRATEGY", "SEED", "GUARD"):
        faulty = replace(evidence, record=record)
        yield Fault("activation", f"command-{key}", faulty, finds("case-command", f" {key}="))
    for name, code, changed in (
        ("guard-flipped", "case-guard", replace(case, guard=not case.guard)),
        ("direction-unknown", "direction", replace(case, direction="nowhere")),
    ):
        faulty = replace(evidence, record=replace(evidence.record, case=changed))
        yield Fault("activation", name, faulty, finds(code))
    if case.exclusive:
        shared = replace(evidence.record, case=replace(case, exclusive=False))
        faulty = replace(evidence, record=shared)
        yield Fault("activation", "kept-out-shared", faulty, finds("case-exclusive"))


def _other(items: Items, event: Event) -> str:
    hosts = {e.host for e in items if e.pid is not None} - {event.host}
    return min(hosts, default="another-host")
