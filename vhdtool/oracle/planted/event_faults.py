"""Faults to plant in copies of the events and of case.json: one for each rule of the record.

Each changes as few events as it can, and waits for the finding that names them. Rules whose
events a record does not have (a refusal, a reopen) find no place in it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import CONTROLLER_HOST, FIRSTS, READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.grammar import is_step, line
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.faults import Fault

_FIELDS = frozenset(field.name for field in fields(Event))
LONG_AGO, FAR = -1e9, 1e9
Items = list[Event]


def rule_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """Events that cannot be so: by the grammar, by their epochs, by case.json."""
    events, case = evidence.record.events, evidence.record.case
    if not events.complete or case is None or judged.activation.worst("doubt"):
        return
    for name, code, text, items in _broken(list(events.items), case, evidence):
        changed = numbered(items)
        # The text of the finding names an event by its line in the changed file.
        at = [n for n, event in enumerate(items) if event is text]
        said = line(changed.items[at[0]]) if at else str(text)
        yield Fault("activation", name, evidence.with_events(changed), says(code, said))
    lost = Events(events.items, ("planted: an event is missing",))
    yield Fault("activation", "events-torn", evidence.with_events(lost), says("events"))
    yield from _claims(evidence, case)


Broken = Iterator[tuple[str, str, Event | str, Items]]
"""(name, code of the finding, the event or the words that it names, events)."""


def _broken(items: Items, case: Case, evidence: Evidence) -> Broken:
    yield from _legs(items)
    yield from _places(items)
    yield from _shims(items)
    yield from _reads(items, case)
    yield from _releases(items)
    yield from _epochs(items)
    yield from _activity(items, evidence, case)


def _legs(items: Items) -> Broken:
    """The controller's events in another order."""
    for event in last(items, "suspended"):
        yield "leg-twice", "leg-order", (again := replace(event)), after(items, event, again)
    for event in last(items, "migrate-started"):
        turned = with_(event, direction="elsewhere->nowhere")
        yield "leg-direction", "leg-order", turned, swapped(items, event, turned)
    for event in last(items, "cancelled"):
        excuses = [e for e in items if e.name in ("refused", "fault-injected")]
        left = [e for e in items if e not in excuses and e.name != "resumed"]
        yield "cancel-unexcused", "leg-order", event, left
        refusals = [e for e in excuses if e.name == "refused"]
        if len(refusals) == len(excuses):
            wrong = [
                with_(e, host=_other(items, e), side="source") if e in refusals else e
                for e in items
            ]
            yield "cancel-excused-by-source", "leg-order", event, wrong
    controller = [e for e in items if e.pid is None]
    for event in controller[-1:]:
        early = with_(event, mono=LONG_AGO)
        yield "controller-clock", "time-falls", early, swapped(items, event, early)


def _places(items: Items) -> Broken:
    """Legs, hosts and sides that are not where the guest is."""
    end = items[-1]
    for name, values in (
        ("leg-number", {"leg": end.leg + 2}),
        ("side-swapped", {"side": "destination" if end.side == "source" else "source"}),
    ):
        wrong = with_(end, **values)
        yield name, "leg-place", wrong, swapped(items, end, wrong)
    for event in first(items, "allocated"):
        wrong = with_(event, leg=event.leg + 1)
        yield "leg-number-early", "leg-place", wrong, swapped(items, event, wrong)
    for event in last(items, "suspended"):
        there = _other(items, event)
        wrong = with_(event, host=there, side="destination")
        yield "suspended-elsewhere", "leg-place", wrong, swapped(items, event, wrong)
    for event in last(items, "attached"):
        wrong = with_(event, host=CONTROLLER_HOST, side="controller")
        yield "controller-attaches", "leg-place", wrong, swapped(items, event, wrong)


def _shims(items: Items) -> Broken:
    """The life of a process in another order, and its clock."""
    end = items[-1]
    for event in last(items, "detached"):
        yield (
            "never-detached",
            "shim-order",
            f"{event.who} is never detached",
            without(items, event),
        )
    for event in last(items, "allocated"):
        strange = with_(event, pid=None)
        yield "no-process", "shim-order", strange, swapped(items, event, strange)
        yield "allocated-detached", "shim-order", event, [*without(items, event), event]
        foreign = with_(event, epoch=(event.epoch or 0) + 1000)
        yield "allocated-elsewhere", "shim-order", foreign, swapped(items, event, foreign)
    for event in last(items, *READS):
        for name, more in (
            ("opened-again", {"implicit": False}), ("activated-again", {}), ("unpaused-open", {}),
        ):  # fmt: skip
            kind = "opened" if "opened" in name else name.partition("-")[0]
            twice = with_(event, name=kind, **more)
            yield name, "shim-order", twice, after(items, event, twice)
    if end.pid is not None:
        early = with_(end, mono=LONG_AGO)
        yield "shim-clock", "shim-order", early, swapped(items, end, early)
    for key, names in (
        ("read_mono", READS), ("began_mono", ("activated", "unpaused")),
        ("last_metadata_mono", RELEASES),
    ):  # fmt: skip
        for event in last(items, *names):
            wrong = with_(event, **{key: FAR})
            yield f"{key}-later", "shim-order", wrong, swapped(items, event, wrong)


def _reads(items: Items, case: Case) -> Broken:
    """What is told of a read: in which order, and how often."""
    for event in last(items, "first-request"):
        twice = replace(event)
        yield "first-request-twice", "shim-order", twice, after(items, event, twice)
        strange = with_(event, epoch=0)
        yield "unknown-read", "unknown-read", event.who, swapped(items, event, strange)
        release = next((e for e in items if e.who == event.who and e.name in RELEASES
                        and e.integer("ended") == event.epoch), None)  # fmt: skip
        if release is not None:
            late = after(without(items, event), release, event)
            yield "served-after-release", "served-after-release", event.who, late
    for event in last(items, "first-write"):
        twice = replace(event)
        yield "first-write-twice", "shim-order", twice, after(items, event, twice)
        told = [e for e in items if e.name == "first-request" and e.who == event.who]
        for request in told[-1:]:
            yield "no-first-request", "shim-order", event, without(items, request)
        blocks = [e for e in items if e.name == "allocated" and e.epoch == event.epoch]
        for block in blocks[:1]:
            yield "no-first-write", "shim-order", block, without(items, event)
    for event in last(items, "activated"):
        silent = replace(event, extra={k: v for k, v in event.extra.items() if k != "lease"})
        yield "lease-untold", "shim-order", silent, swapped(items, event, silent)
        if case.guard and any(e.who == event.who and e.name in FIRSTS for e in items):
            opened = with_(silent, name="opened")
            yield "no-lease", "no-lease", f"epoch {event.epoch}", swapped(items, event, opened)
        leased = with_(event, name="opened", lease=True)
        yield "open-with-lease", "shim-order", leased, swapped(items, event, leased)


def _releases(items: Items) -> Broken:
    releases = [e for e in items if e.name in RELEASES and e.epoch and e.integer("ended")]
    for event in releases[-1:]:
        for name, ended in (("ended-nothing", None), ("ended-other", 10**6)):
            wrong = with_(event, ended=ended)
            yield name, "shim-order", wrong, swapped(items, event, wrong)
        low = with_(event, epoch=event.integer("ended"))
        yield "released-at-its-read", "epoch-falls", f"released epoch {low.epoch} at epoch", (
            swapped(items, event, low)
        )  # fmt: skip
        yield "epoch-twice", "epoch-twice", f"epoch {low.epoch} ", swapped(items, event, low)
        yield "epoch-falls", "epoch-falls", f"{event.who} saw epoch", swapped(items, event, low)


def _epochs(items: Items) -> Broken:
    counted = [e for e in items if e.name in READS | RELEASES and e.epoch is not None]
    for event in counted[-1:]:
        up = with_(event, epoch=(event.epoch or 0) + 1)
        text = f"no event tells of epoch {event.epoch},"
        yield "one-epoch-untold", "epoch-untold", text, swapped(items, event, up)
    legs = [event for event in counted if event.leg == items[-1].leg and event.name in READS]
    if legs and any(event.leg < items[-1].leg and event.name in READS for event in counted):
        low = with_(legs[0], epoch=1)
        text = f"to leg {items[-1].leg}"
        yield "leg-epochs", "epoch-falls", text, swapped(items, legs[0], low)
    steps = [event for event in counted if is_step(event)]
    for one, other in zip(steps[-2:-1], steps[-1:], strict=True):
        a, b = with_(one, epoch=other.epoch), with_(other, epoch=one.epoch)
        changed = swapped(swapped(items, one, a), other, b)
        yield "epoch-order", "epoch-order", b, changed


def _activity(items: Items, evidence: Evidence, case: Case) -> Broken:
    starts = [e for e in items if e.name == "migrate-started"]
    rest = [e for e in items if e not in starts]
    yield "nothing-started", "nothing-started", "", rest
    yield "no-source", "no-source", "", [*starts[:1], *[e for e in items if e not in starts[:1]]]
    final = evidence.attempts[-1] if evidence.attempts else None
    if final is not None and final.moved:
        there = [
            e for e in items
            if not (e.name in FIRSTS and e.host == final.destination and e.leg == final.leg)
        ]  # fmt: skip
        yield "no-destination", "no-destination", f"leg {final.leg} ", there
    for event in last(items, "allocated"):
        fenced = with_(event, name="fenced")
        yield "fenced", "fenced", event.who, after(items, event, fenced)
    for event in last(items, "attached"):
        sized = with_(event, size=case.image_bytes + 512)
        yield "size-other", "case-size", sized, swapped(items, event, sized)
    for event in last(items, "suspended"):
        if not case.exclusive:
            kept = with_(event, name="kept-out")
            yield "kept-out-untold", "case-exclusive", kept, after(items, event, kept)
    takers = [e for e in items if e.extra.get("lease") is True]
    if case.guard and takers:
        silent = [with_(e, lease=False) if e is takers[-1] else e for e in items]
        yield "lease-not-taken", "case-guard", "took no lease", silent
        none = [replace(e, extra={k: v for k, v in e.extra.items() if k != "lease"}) for e in items]
        yield "no-lease-at-all", "case-guard", "no event took the lease", none
    elif not case.guard:
        for event in last(items, "activated", "unpaused"):
            leased = with_(event, lease=True)
            yield "lease-taken", "case-guard", leased, swapped(items, event, leased)


def _claims(evidence: Evidence, case: Case) -> Iterator[Fault]:
    """case.json and reproduce.txt that the rest contradicts."""
    guard = "off" if case.guard else "on"
    words = f"make lab STRATEGY=another-one SEED={case.seed + 1} GUARD={guard}"
    record = replace(evidence.record, reproduce=words)
    for key in ("STRATEGY", "SEED", "GUARD"):
        faulty = replace(evidence, record=record)
        yield Fault("activation", f"command-{key}", faulty, says("case-command", f" {key}="))
    for name, code, changed in (
        ("guard-flipped", "case-guard", replace(case, guard=not case.guard)),
        ("direction-unknown", "direction", replace(case, direction="nowhere")),
    ):
        faulty = replace(evidence, record=replace(evidence.record, case=changed))
        yield Fault("activation", name, faulty, says(code))
    if case.exclusive:
        shared = replace(evidence.record, case=replace(case, exclusive=False))
        faulty = replace(evidence, record=shared)
        yield Fault("activation", "kept-out-untold", faulty, says("case-exclusive"))


def says(code: str, *texts: str) -> Callable[[Finding], bool]:
    """A finding of that code with those words in it."""
    return lambda finding: finding.code == code and all(t in finding.message for t in texts)


def numbered(items: Sequence[Event]) -> Events:
    """Complete events with the numbers of their lines."""
    return Events(
        tuple(event if event.seq == n else _at(event, n) for n, event in enumerate(items, 1)), ()
    )


def _at(event: Event, seq: int) -> Event:
    """The same at another line; `replace` takes three times as long."""
    return Event(
        seq, event.name, event.leg, event.host, event.side, event.pid, event.epoch, event.mono,
        event.extra,
    )  # fmt: skip


def with_(event: Event, **values: object) -> Event:
    """A copy with other values; what is no field of every event goes to its own ones."""
    own = {key: value for key, value in values.items() if key in _FIELDS}
    rest = {key: value for key, value in values.items() if key not in _FIELDS}
    return replace(event, extra={**event.extra, **rest}, **own)  # type: ignore[arg-type]


def first(items: Items, *names: str) -> Items:
    return [event for event in items if event.name in names][:1]


def last(items: Items, *names: str) -> Items:
    return [event for event in items if event.name in names][-1:]


def without(items: Items, gone: Event) -> Items:
    return [event for event in items if event is not gone]


def after(items: Items, place: Event, more: Event) -> Items:
    at = next(n for n, event in enumerate(items) if event is place) + 1
    return [*items[:at], more, *items[at:]]


def swapped(items: Items, old: Event, new: Event) -> Items:
    return [new if event is old else event for event in items]


def _other(items: Items, event: Event) -> str:
    hosts = {e.host for e in items if e.pid is not None} - {event.host}
    return min(hosts, default="another-host")
