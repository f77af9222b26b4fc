"""Epochs accounted for: each number between the first and the last belongs to one event.

Whoever reads the metadata or gives it up takes the next number of the counter beside the image. A
number that no event tells of was taken by somebody whom the record does not know.
"""

import itertools
from collections.abc import Iterator

from vhdtool.oracle.evidence.events import READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.grammar import is_step, line
from vhdtool.oracle.finding import Finding, doubt

SHOWN = 5
"""Gaps that are listed; more say nothing new."""


def epochs(events: Events) -> list[Finding]:
    """Doubts about numbers that nobody took, and about their order."""
    return [*_gaps(events), *_order(events)] if events.complete else []


def _gaps(events: Events) -> Iterator[Finding]:
    told = {e.epoch: e for e in events.items if e.name in READS | RELEASES and e.epoch is not None}
    excused: set[int] = set()
    for event in events.named("refused"):
        # An activation that failed after it had the lease gave it up again: two numbers.
        released = event.integer("released")
        if released is not None:
            told.setdefault(released, event)
            excused.add(released)
    found = 0
    for before, after in itertools.pairwise(sorted(told)):
        missing = after - before - 1
        if missing == 1 and after in excused:
            continue
        if missing and found < SHOWN:
            found += 1
            which = f"epoch {before + 1}" if missing == 1 else f"epochs {before + 1} to {after - 1}"
            yield Finding(
                "epoch-untold",
                f"no event tells of {which}, between {line(told[before])} and "
                f"{line(told[after])}: somebody used the image whom no event names",
                "doubt",
                epochs=(before + 1, after),
            )


def _order(events: Events) -> Iterator[Finding]:
    """The controller asks for one operation after the other, so their epochs rise with seq."""
    newest: Event | None = None
    for event in events.items:
        if event.name not in READS | RELEASES or event.epoch is None or not is_step(event):
            continue
        if newest is not None and event.epoch <= (newest.epoch or 0):
            text = f"{line(event)} has epoch {event.epoch}, {line(newest)} before it "
            yield doubt("epoch-order", text + f"has {newest.epoch}")
            return
        newest = event
