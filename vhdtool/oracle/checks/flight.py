"""How many requests were in flight when the guest was stopped, and what was checked on each leg.

The slots of the deep half keep one request in flight each: the guest says that they have begun
after all have issued their first one, and that an operation was acknowledged after the next one was
issued. So a slot that had begun before the guest was stopped, and had an operation acknowledged
later, had that one in flight.
"""

from collections.abc import Sequence

from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.console import Console
from vhdtool.oracle.evidence.depth import LEAST_IN_FLIGHT, SLOTS, WAIT_FOR_A_WRITE
from vhdtool.oracle.evidence.events import Event


def in_flight(console: Console, attempts: Sequence[Attempt]) -> list[int]:
    """One number for each time that the guest was stopped and ran again.

    Where QEMU said how many it had in its queues (`queued`), it is the smaller of the two.
    """
    return [
        min(_slots(console, one.suspended), _queued(one.suspended))
        for one in attempts
        if one.suspended is not None and one.runs_again is not None
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
    """QEMU's own count, taken while the guest's memory was copied; SLOTS where there is none."""
    counts = stop.extra.get("queued")
    numbers = counts.values() if isinstance(counts, dict) else ()
    return sum(number for number in numbers if isinstance(number, int)) if numbers else SLOTS


def few(console: Console, attempts: Sequence[Attempt]) -> list[str]:
    """What is to be said of legs with some requests in flight, but fewer than the least."""
    return [
        f"{text}, so it says little about requests that a switch drains"
        for count, text in _counts(console, attempts)
        if 0 < count < LEAST_IN_FLIGHT
    ]


def _counts(console: Console, attempts: Sequence[Attempt]) -> list[tuple[int, str]]:
    """(requests in flight, the same in words) for each time that the guest was stopped."""
    stops = [one for one in attempts if one.suspended and one.runs_again]
    return [
        (
            count,
            f"leg {one.leg}: only {count} requests were in flight when the guest was stopped, "
            f"fewer than {LEAST_IN_FLIGHT}",
        )
        for one, count in zip(stops, in_flight(console, attempts), strict=True)
    ]


def shallow(console: Console, attempts: Sequence[Attempt]) -> list[str]:
    """Reasons why a record, whose load has a deep half, proves nothing about that half."""
    problems = [text for count, text in _counts(console, attempts) if not count]
    for place, one in enumerate(attempts):
        if one.runs_again is None:
            continue
        here = one.destination if one.moved else one.source
        following = attempts[place + 1].started.mono if place + 1 < len(attempts) else float("inf")
        found = [
            check
            for check in console.checks
            if check.host == here and one.runs_again.mono < check.mono < following
        ]
        if not any(check.checked for check in found):
            problems.append(f"leg {one.leg}: what was written once was not checked on {here}")
    return problems
