"""Faults to plant where it is counted what a run did: too little, or a refusal that is none."""

from collections.abc import Iterator
from dataclasses import replace

from vhdtool.oracle.coverage import MINIMUM
from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import Event
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.event_faults import after, last, numbered, says, with_, without
from vhdtool.oracle.planted.faults import Fault

Items = list[Event]


def coverage_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """Runs that did too little on one side of a switch, and legs without an end."""
    events, case = evidence.record.events, evidence.record.case
    attempts = evidence.attempts
    if not events.complete or case is None or not attempts:
        return
    final = attempts[-1]
    again = final.runs_again
    if again is None or final.outcome is None:
        return
    items = list(events.items)
    yield from _acks(evidence, again)
    for name, text, changed in _counted(items, attempts, again):
        faulty = evidence.with_events(numbered(changed))
        yield Fault("coverage", name, faulty, says("coverage", text))
    yield from _legs(evidence, case)
    if case.deep_blocks:
        yield from _deep(evidence, attempts)
    if final.moved:
        return
    for name, text, changed in _refusals(items, final):
        faulty = evidence.with_events(numbered(changed))
        yield Fault("coverage", name, faulty, says("coverage", text))


def _acks(evidence: Evidence, again: Event) -> Iterator[Fault]:
    """One acknowledgement fewer after the last switch than the least that counts."""
    acks = evidence.console.acks
    before = [ack for ack in acks if ack.mono <= again.mono]
    behind = [ack for ack in acks if ack.mono > again.mono][: MINIMUM - 1]
    console = replace(evidence.console, acks=[*before, *behind])
    faulty = replace(evidence, console=console)
    text = f"only {MINIMUM - 1} writes were acknowledged"
    yield Fault("coverage", "few-acks", faulty, says("coverage", text))


def _deep(evidence: Evidence, attempts: list[Attempt]) -> Iterator[Fault]:
    """Nothing in flight when the guest was stopped, and nothing checked after it."""
    console = replace(evidence.console, deep={}, checks=[])
    shallow = replace(evidence, console=console)
    for attempt in attempts:
        if attempt.runs_again is None:
            continue
        text = f"leg {attempt.leg}: what was written once was not checked"
        yield Fault("coverage", f"unchecked-{attempt.leg}", shallow, says("coverage", text))
        if attempt.suspended is not None:
            text = f"leg {attempt.leg}: only 0 requests were in flight"
            yield Fault("coverage", f"shallow-{attempt.leg}", shallow, says("coverage", text))


def _counted(
    items: Items, attempts: list[Attempt], again: Event
) -> Iterator[tuple[str, str, Items]]:
    """(name, words of the doubt, events) with one new block fewer than the least that counts."""
    blocks = [event for event in items if event.name == "allocated"]
    moves = [one for one in attempts if one.suspended and (one.moved or one is attempts[-1])]
    for attempt in moves[:1]:
        assert attempt.suspended is not None
        early = [event for event in blocks if event.seq < attempt.suspended.seq]
        text = f"only {MINIMUM - 1} new blocks before the switch of leg {attempt.leg},"
        yield "few-blocks-before", text, _less(items, early[: 1 - MINIMUM])
    for attempt in moves[-1:]:
        late = [event for event in blocks if event.seq > again.seq]
        text = f"only {MINIMUM - 1} new blocks after the switch of leg {attempt.leg},"
        yield "few-blocks-after", text, _less(items, late[MINIMUM - 1 :])
    final = attempts[-1]
    text = f"leg {final.leg} neither migrated nor was cancelled"
    yield "unended", text, without(items, final.outcome) if final.outcome else items
    if final.moved and final.suspended and final.resumed:
        text = f"leg {final.leg} migrated without"
        yield "never-suspended", text, without(items, final.suspended)
        yield "never-resumed", text, without(items, final.resumed)
    nameless = [with_(event, side="controller") for event in items]
    if final.moved:
        yield "no-sides", f"leg {final.leg}: no event names", nameless


def _less(items: Items, gone: Items) -> Items:
    seqs = {event.seq for event in gone}
    return [event for event in items if event.seq not in seqs]


def _legs(evidence: Evidence, case: Case) -> Iterator[Fault]:
    """case.json tells of another number of legs, or of a LUN that lets one host in."""

    def other(changed: Case) -> Evidence:
        return replace(evidence, record=replace(evidence.record, case=changed))

    more = other(replace(case, legs=case.legs + 1))
    text = f"no event tells of leg {case.legs + 1}"
    yield Fault("coverage", "leg-missing", more, says("coverage", text))
    fewer = other(replace(case, legs=case.legs - 1))
    text = f"events tell of leg {case.legs}, the case of"
    yield Fault("coverage", "leg-too-many", fewer, says("coverage", text))
    items = list(evidence.record.events.items)
    kept = [event for event in items if event.name == "kept-out"]
    faulty = other(replace(case, exclusive=True)).with_events(numbered(_less(items, kept)))
    for attempt in evidence.attempts:
        text = f"leg {attempt.leg}: nobody tried"
        yield Fault("coverage", f"untried-{attempt.leg}", faulty, says("coverage", text))
    for event, stop in zip(kept[-1:], last(items, "suspended"), strict=False):
        late = after(without(items, event), stop, event)
        faulty = other(replace(case, exclusive=True)).with_events(numbered(late))
        text = f"leg {event.leg}: nobody tried"
        yield Fault("coverage", "tried-late", faulty, says("coverage", text))


def _refusals(items: Items, final: Attempt) -> Iterator[tuple[str, str, Items]]:
    """Refusals that do not count, and guests that did not go on as they were to."""
    refused = [event for event in items if event.name == "refused"]
    end = final.cancelled
    if not refused or end is None:
        return
    none = "cancelled without a refusal"
    rest = _less(items, refused)
    yield "refusal-gone", none, rest
    for name, values in (
        ("refused-by-source", {"host": final.source}), ("refused-as-source", {"side": "source"}),
    ):  # fmt: skip
        changed = [with_(e, **values) if e.name == "refused" else e for e in items]
        yield name, none, changed
    yield "refused-after-the-end", none, after(rest, end, refused[-1])
    yield "refused-before-the-leg", none, [refused[0], *rest]
    resumed = with_(end, name="resumed", host=final.destination, side="destination")
    early = after(rest, final.started, resumed)
    yield "refused-after-resumed", none, after(early, resumed, refused[-1])
    mine = [e for e in items if e.name == "allocated" and e.seq > end.seq]
    yield "source-did-nothing", "the source allocated no new block", _less(items, mine)
    base = next(event for event in items if event.pid is not None)
    for name in ("first-request", "first-write", "allocated"):
        own = {"block": 1 << 30} if name == "allocated" else {}
        served = with_(base, name=name, host=final.destination, leg=final.leg, **own)
        yield f"refused-and-{name}", "refused, but it served", after(items, end, served)
