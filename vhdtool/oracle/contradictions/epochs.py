"""Epochs, against one another: each number between the first and the last belongs to one event.

Each metadata read and each release takes the next number of the counter beside the image. A number
without an event was taken by a process that the record does not know.
"""

import itertools
from collections.abc import Iterator

from vhdtool.oracle.evidence.events import READS, RELEASES, Event, Events
from vhdtool.oracle.evidence.grammar import cite, is_operation
from vhdtool.oracle.finding import Finding, doubt

SHOWN = 5
"""Gaps that are listed at most."""


def check_epochs(events: Events) -> list[Finding]:
    """Doubts about epochs without an event, and about their order."""
    return [*_gaps(events), *_order(events)] if events.complete else []


def _gaps(events: Events) -> Iterator[Finding]:
    owner = {e.epoch: e for e in events.items if e.name in READS | RELEASES and e.epoch is not None}
    refusals: set[int] = set()
    for event in events.named("refused"):
        # An activation that failed after it took the lease released it: it used two numbers.
        released = event.integer("released")
        if released is not None:
            owner.setdefault(released, event)
            refusals.add(released)
    found = 0
    for before, after in itertools.pairwise(sorted(owner)):
        missing = after - before - 1
        if missing == 1 and after in refusals:
            continue
        if missing and found < SHOWN:
            found += 1
            which = f"epoch {before + 1}" if missing == 1 else f"epochs {before + 1} to {after - 1}"
            yield Finding(
                "epoch-untold",
                f"no event has {which}, between {cite(owner[before])} and {cite(owner[after])}: "
                f"a process that the record does not know used the image",
                "doubt",
                epochs=(before + 1, after),
            )


def _order(events: Events) -> Iterator[Finding]:
    """The controller requests one operation after the other, so their epochs rise with seq."""
    newest: Event | None = None
    for event in events.items:
        if event.name not in READS | RELEASES or event.epoch is None or not is_operation(event):
            continue
        if newest is not None and event.epoch <= (newest.epoch or 0):
            text = f"{cite(event)} has epoch {event.epoch}, {cite(newest)} before it "
            yield doubt("epoch-order", text + f"has {newest.epoch}")
            return
        newest = event
