"""Faults in what a case did: too little of it, legs without an end, refusals that do not count."""

from collections.abc import Iterator
from dataclasses import replace

from vhdtool.oracle.coverage import MINIMUM
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import Event
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.event_edits import Items, after, altered, last, renumbered, without
from vhdtool.oracle.planted.fault import Fault, finds


def coverage_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Cases that did too little on one side of a switch, and legs without an end."""
    events, case = evidence.record.events, evidence.record.case
    legs = evidence.legs
    if not events.complete or case is None or not legs:
        return
    final = legs[-1]
    again = final.runs_again
    if again is None or final.outcome is None:
        return
    items = list(events.items)
    yield from _acks(evidence, again)
    for name, text, changed in _counted(items, legs, again):
        faulty = evidence.with_events(renumbered(changed))
        yield Fault("coverage", name, faulty, finds("coverage", text))
    yield from _legs(evidence, case)
    if case.deep_blocks:
        yield from _deep(evidence, legs)
    if final.moved:
        return
    for name, text, changed in _refusals(items, final):
        faulty = evidence.with_events(renumbered(changed))
        yield Fault("coverage", name, faulty, finds("coverage", text))


def _acks(evidence: Evidence, again: Event) -> Iterator[Fault]:
    """One acknowledgement fewer than MINIMUM after the last switch."""
    acks = evidence.console.acks
    before = [ack for ack in acks if ack.mono <= again.mono]
    later = [ack for ack in acks if ack.mono > again.mono][: MINIMUM - 1]
    console = replace(evidence.console, acks=[*before, *later])
    faulty = replace(evidence, console=console)
    text = f"only {MINIMUM - 1} writes were acknowledged"
    yield Fault("coverage", "few-acks", faulty, finds("coverage", text))


def _deep(evidence: Evidence, legs: list[Leg]) -> Iterator[Fault]:
    """No request in flight when the guest was stopped, and no check after it."""
    console = replace(evidence.console, deep={}, checks=[])
    shallow = replace(evidence, console=console)
    for leg in legs:
        if leg.runs_again is None:
            continue
        text = f"leg {leg.number}: the guest did not check"
        yield Fault("coverage", f"unchecked-{leg.number}", shallow, finds("coverage", text))
        if leg.suspended is not None:
            text = f"leg {leg.number}: only 0 requests were in flight"
            yield Fault("coverage", f"shallow-{leg.number}", shallow, finds("coverage", text))


def _counted(items: Items, legs: list[Leg], again: Event) -> Iterator[tuple[str, str, Items]]:
    """(name, text of the doubt, events) with one new block fewer than MINIMUM, and other losses."""
    blocks = [event for event in items if event.name == "allocated"]
    moves = [one for one in legs if one.suspended and (one.moved or one is legs[-1])]
    for leg in moves[:1]:
        assert leg.suspended is not None
        early = [event for event in blocks if event.seq < leg.suspended.seq]
        text = f"only {MINIMUM - 1} new blocks before the switch of leg {leg.number},"
        yield "few-blocks-before", text, _except(items, early[: 1 - MINIMUM])
    for leg in moves[-1:]:
        late = [event for event in blocks if event.seq > again.seq]
        text = f"only {MINIMUM - 1} new blocks after the switch of leg {leg.number},"
        yield "few-blocks-after", text, _except(items, late[MINIMUM - 1 :])
    final = legs[-1]
    text = f"leg {final.number} neither migrated nor was cancelled"
    yield "unended", text, without(items, final.outcome) if final.outcome else items
    if final.moved and final.suspended and final.resumed:
        text = f"leg {final.number} migrated without"
        yield "never-suspended", text, without(items, final.suspended)
        yield "never-resumed", text, without(items, final.resumed)
    nameless = [altered(event, side="controller") for event in items]
    if final.moved:
        yield "no-sides", f"leg {final.number}: no event names", nameless


def _except(items: Items, gone: Items) -> Items:
    seqs = {event.seq for event in gone}
    return [event for event in items if event.seq not in seqs]


def _legs(evidence: Evidence, case: Case) -> Iterator[Fault]:
    """case.json with another number of legs, or with a LUN that must keep the destination out."""

    def other(changed: Case) -> Evidence:
        return replace(evidence, record=replace(evidence.record, case=changed))

    more = other(replace(case, legs=case.legs + 1))
    text = f"the events have no leg {case.legs + 1}"
    yield Fault("coverage", "leg-missing", more, finds("coverage", text))
    fewer = other(replace(case, legs=case.legs - 1))
    text = f"the events have leg {case.legs}, case.json"
    yield Fault("coverage", "leg-too-many", fewer, finds("coverage", text))
    items = list(evidence.record.events.items)
    tries = [event for event in items if event.name == "kept-out"]
    faulty = other(replace(case, exclusive=True)).with_events(renumbered(_except(items, tries)))
    for leg in evidence.legs:
        text = f"leg {leg.number}: it was not tested"
        yield Fault("coverage", f"untried-{leg.number}", faulty, finds("coverage", text))
    for event, stop in zip(tries[-1:], last(items, "suspended"), strict=False):
        late = after(without(items, event), stop, event)
        faulty = other(replace(case, exclusive=True)).with_events(renumbered(late))
        text = f"leg {event.leg}: it was not tested"
        yield Fault("coverage", "tried-late", faulty, finds("coverage", text))


def _refusals(items: Items, final: Leg) -> Iterator[tuple[str, str, Items]]:
    """Refusals that do not count, and a guest that did not continue at the source."""
    refused = [event for event in items if event.name == "refused"]
    end = final.cancelled
    if not refused or end is None:
        return
    none = "cancelled without a refusal"
    rest = _except(items, refused)
    yield "refusal-gone", none, rest
    for name, values in (
        ("refused-by-source", {"host": final.source}), ("refused-as-source", {"side": "source"}),
    ):  # fmt: skip
        changed = [altered(e, **values) if e.name == "refused" else e for e in items]
        yield name, none, changed
    yield "refused-after-the-end", none, after(rest, end, refused[-1])
    yield "refused-before-the-leg", none, [refused[0], *rest]
    resumed = altered(end, name="resumed", host=final.destination, side="destination")
    early = after(rest, final.started, resumed)
    yield "refused-after-resumed", none, after(early, resumed, refused[-1])
    mine = [e for e in items if e.name == "allocated" and e.seq > end.seq]
    yield "source-did-nothing", "the source allocated no new blocks", _except(items, mine)
    base = next(event for event in items if event.pid is not None)
    for name in ("first-request", "first-write", "allocated"):
        own = {"block": 1 << 30} if name == "allocated" else {}
        served = altered(base, name=name, host=final.destination, leg=final.number, **own)
        yield f"refused-and-{name}", "refused, but it served", after(items, end, served)
