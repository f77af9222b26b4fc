"""The write load of a case, as far as the guest's console tells of it."""

from dataclasses import dataclass
from functools import lru_cache

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import Console
from vhdtool.oracle.evidence.depth import DEEP, SLOTS, Depth, Left
from vhdtool.oracle.evidence.schedule import SECTOR, Schedule

_schedule = lru_cache(maxsize=4)(Schedule)
"""The order of the blocks is shuffled anew each time, and planted faults ask for it often."""


@dataclass
class Load:
    """The write load of a case as far as the guest told of it.

    `last`: sector -> last acknowledged write that covers it; where two were in flight at once and
    the order is not known, one of them. `deep`: what the deep half left; None where there is none.
    """

    schedule: Schedule
    acked: frozenset[int]
    issued: int | None
    last: dict[int, int]
    extents: dict[int, tuple[int, int]]
    deep: Left | None = None

    @classmethod
    def of(cls, case: Case, console: Console) -> "Load":
        schedule = schedule_of(case)
        extents = {ack.n: schedule.extent(ack.n) for ack in console.acks}
        last: dict[int, int] = {}
        for n, (first, count) in sorted(extents.items()):
            last.update(dict.fromkeys(range(first, first + count), n))
        deep = _left(case, console)
        if deep is not None:
            last.update(deep.last)
        return cls(schedule, frozenset(extents), console.issued, last, extents, deep)

    def may_be_unacknowledged(self, n: int, sector: int) -> bool:
        """Whether write `n` covers the sector, was (or may have been) issued, and has no ack."""
        if n >= DEEP:
            return self.deep is not None and self.deep.may_be(n, sector)
        if n in self.acked or (self.issued is not None and n >= self.issued):
            return False
        first, count = self.schedule.extent(n)
        return first <= sector < first + count

    def may_be_instead(self, n: int, sector: int) -> bool:
        """Whether write `n` may be there though `last` names another, or none.

        It was in flight together with that one, or it was discarded, which is advice.
        """
        if self.deep is None:
            return False
        return n in self.deep.also.get(sector, ()) or self.deep.freed.get(sector, -1) == n

    def named(self, n: int | None) -> str:
        """A write in words."""
        if n is None or n < DEEP:
            return f"write {n}"
        slot, seq = Depth.slot_of(n)
        return f"write {seq} of slot {slot}"

    def block(self, sector: int) -> int:
        return sector // self.schedule.block_sectors


def schedule_of(case: Case) -> Schedule:
    """The paced half of a case's load."""
    sectors, block = case.image_bytes // SECTOR, case.block_bytes // SECTOR
    return _schedule(case.seed, sectors, block, case.deep_blocks)


def depth_of(case: Case) -> Depth | None:
    """The deep half; None where there is none."""
    sectors, block = case.image_bytes // SECTOR, case.block_bytes // SECTOR
    first = -(-sectors // block) - case.deep_blocks
    count = sectors // block - first
    return Depth(first, count, block, case.frees) if count > 0 else None


def _left(case: Case, console: Console) -> Left | None:
    depth = depth_of(case)
    if depth is None:
        return None
    acked = {slot: len(console.deep.get(slot, ())) for slot in range(SLOTS)}
    whole = console.issued is not None and not console.problems and not console.errors
    return Left(depth, acked, ended=whole)
