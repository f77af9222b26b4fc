"""The write load of a case, as far as the guest acknowledged it."""

from dataclasses import dataclass
from functools import lru_cache

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import Console
from vhdtool.oracle.evidence.depth import DEEP, SLOTS, DeepContent, Depth
from vhdtool.oracle.evidence.schedule import SECTOR, Schedule

_depth = lru_cache(maxsize=4)(Depth)
_schedule = lru_cache(maxsize=4)(Schedule)
"""Cached: a schedule shuffles all blocks, and each planted fault needs it."""


@dataclass
class Load:
    """The acknowledged writes of a case, and what the disk may hold because of them.

    `last`: sector -> last acknowledged write that covers it; of two that were in flight at the same
    time, either. `deep`: what the deep half may have left; None without a deep half.
    """

    schedule: Schedule
    acked: frozenset[int]
    issued: int | None
    last: dict[int, int]
    extents: dict[int, tuple[int, int]]
    deep: DeepContent | None = None

    @classmethod
    def of(cls, case: Case, console: Console) -> "Load":
        schedule = schedule_of(case)
        extents = {ack.n: schedule.extent(ack.n) for ack in console.acks}
        last: dict[int, int] = {}
        for n, (first, count) in sorted(extents.items()):
            last.update(dict.fromkeys(range(first, first + count), n))
        deep = _deep_content(case, console)
        if deep is not None:
            last.update(deep.last)
        return cls(schedule, frozenset(extents), console.issued, last, extents, deep)

    def may_be_unacknowledged(self, n: int, sector: int) -> bool:
        """Whether write `n` covers the sector and may have been issued, but has no ack."""
        if n >= DEEP:
            return self.deep is not None and self.deep.may_hold(n, sector)
        if n in self.acked or (self.issued is not None and n >= self.issued):
            return False
        first, count = self.schedule.extent(n)
        return first <= sector < first + count

    def may_be_instead(self, n: int, sector: int) -> bool:
        """Whether the sector may hold write `n` although `last` has another write, or none.

        The two were in flight at the same time, or write `n` was discarded, which is only a hint.
        """
        if self.deep is None:
            return False
        return n in self.deep.also.get(sector, ()) or self.deep.freed.get(sector, -1) == n

    def describe(self, n: int | None) -> str:
        """Names a write in a message."""
        if n is None or n < DEEP:
            return f"write {n}"
        slot, seq = Depth.slot_of(n)
        return f"write {seq} of slot {slot}"

    def block(self, sector: int) -> int:
        return sector // self.schedule.block_sectors


def schedule_of(case: Case) -> Schedule:
    """The paced half of the load."""
    sectors, block = case.image_bytes // SECTOR, case.block_bytes // SECTOR
    return _schedule(case.seed, sectors, block, case.deep_blocks)


def depth_of(case: Case) -> Depth | None:
    """The deep half of the load; None if the case has none."""
    sectors, block = case.image_bytes // SECTOR, case.block_bytes // SECTOR
    first = -(-sectors // block) - case.deep_blocks
    count = sectors // block - first
    return _depth(first, count, block, case.frees) if count > 0 else None


def _deep_content(case: Case, console: Console) -> DeepContent | None:
    depth = depth_of(case)
    if depth is None:
        return None
    acked = tuple(len(console.deep.get(slot, ())) for slot in range(SLOTS))
    whole = console.issued is not None and not console.problems and not console.errors
    return _replayed(depth, acked, whole)


@lru_cache(maxsize=4)
def _replayed(depth: Depth, acked: tuple[int, ...], ended: bool) -> DeepContent:
    """Cached: it replays every operation, and most planted faults leave the deep half as it is."""
    return DeepContent(depth, dict(enumerate(acked)), ended)
