"""How many requests were in flight when the guest was stopped, and what was checked on each leg.

Each slot of the deep half keeps one request in flight. The guest prints `deep start` after all
slots have issued their first operation, and acknowledges an operation after the next one was
issued. So a slot that had started before the guest was stopped, and has an operation acknowledged
later, had that operation in flight.
"""

from collections.abc import Sequence

from vhdtool.oracle.evidence.console import Console
from vhdtool.oracle.evidence.depth import LEAST_IN_FLIGHT, SLOTS, WAIT_FOR_A_WRITE
from vhdtool.oracle.evidence.events import Event
from vhdtool.oracle.evidence.legs import Leg


def requests_in_flight(console: Console, legs: Sequence[Leg]) -> list[int]:
    """One number for each time that the guest was stopped and ran again.

    If QEMU recorded the length of its queues (`queued`), the smaller of the two numbers.
    """
    return [
        min(_slots(console, leg.suspended), _queued(leg.suspended))
        for leg in legs
        if leg.suspended is not None and leg.runs_again is not None
    ]


def _slots(console: Console, stop: Event) -> int:
    if console.deep_began is None or console.deep_began > stop.mono:
        return 0
    return sum(
        acks[-1].mono > stop.mono
        for slot, acks in console.deep.items()
        if acks and slot not in WAIT_FOR_A_WRITE
    )


def _queued(stop: Event) -> int:
    """QEMU's own count, taken while the guest's memory was copied; SLOTS if there is none."""
    counts = stop.extra.get("queued")
    numbers = counts.values() if isinstance(counts, dict) else ()
    return sum(number for number in numbers if isinstance(number, int)) if numbers else SLOTS


def few_in_flight(console: Console, legs: Sequence[Leg]) -> list[str]:
    """Notes on legs with fewer requests in flight than LEAST_IN_FLIGHT, but not none."""
    return [
        f"{text}, so that the case says little about requests that a switch drains"
        for count, text in _counts(console, legs)
        if 0 < count < LEAST_IN_FLIGHT
    ]


def _counts(console: Console, legs: Sequence[Leg]) -> list[tuple[int, str]]:
    """(requests in flight, a sentence) for each time that the guest was stopped."""
    stops = [leg for leg in legs if leg.suspended and leg.runs_again]
    return [
        (
            count,
            f"leg {leg.number}: only {count} requests were in flight when the guest was stopped, "
            f"fewer than {LEAST_IN_FLIGHT}",
        )
        for leg, count in zip(stops, requests_in_flight(console, legs), strict=True)
    ]


def untested_depth(console: Console, legs: Sequence[Leg]) -> list[str]:
    """Doubts of a record with a deep half: legs with no request in flight, or without a check."""
    problems = [text for count, text in _counts(console, legs) if not count]
    for index, leg in enumerate(legs):
        if leg.runs_again is None:
            continue
        end = legs[index + 1].started.mono if index + 1 < len(legs) else float("inf")
        found = [
            check
            for check in console.checks
            if check.host == leg.guest_host and leg.runs_again.mono < check.mono < end
        ]
        if not any(check.checked for check in found):
            text = f"leg {leg.number}: the guest did not check on {leg.guest_host} the extents "
            problems.append(text + "that it had written once")
    return problems
