"""The deep half of the write load: many requests that are always in flight, each in a slot.

A slot is a serial process: it issues its operation `seq + 1` when `seq` has been acknowledged, so
one operation of nearly every slot is in flight at any moment, also when the guest is stopped. What
a slot does is a pure function of (slot, seq). Slots write to places of their own; only the two of a
pair share one, and write to it in no order.

Like schedule.py it runs in the guest and in the verifier, and imports nothing. A write's number
tells its slot and seq, and its content is made by Schedule.sector_content.

    slots    queue  what they do
    0..11    1      write once, each time 4 KiB of a block that is new to all of them
    12..23   1      rewrite one place in order, and move on to another block after some time
    24..27   1      two pairs: both of a pair write the same 4 KiB, in no order
    28..33   1      read what was written once, and compare
    34..35   1      flush
    36..39   2      write once, with FUA
    40..43   2      rewrite one place in order, with FUA
    44       2      write, write zeroes (in place), write part of it anew
    45       2      write, write zeroes (as a hole), write part of it anew
    46..47   2      write, discard, write part of it anew
"""

SLOTS = 48
LEAST_IN_FLIGHT = 32
"""Requests that must be in flight when the guest is stopped, or the case says nothing of them."""
DEEP = 1 << 36
"""Numbers of these writes begin here; paced writes stay below."""
MOST_BLOCKS = 64
WRITE, ZERO, DISCARD, FLUSH, READ = "write", "zero", "discard", "flush", "read"
FIRST_OF_QUEUE_2 = 36
FIRST_WITH_CALLS = 44
"""From here on a slot makes system calls that the kernel has no asynchronous form of."""
MAKES_HOLES = 45
"""The slot whose zeroes need not be kept as data."""
WAIT_FOR_A_WRITE = (34, 35)
"""Slots that are issued behind a write: nobody holds up a flush, so they would do nothing else."""
_FUA_ONCE, _FUA_PLACE = 36, 40
_PLACE, _PAIR, _READ, _FLUSH = 12, 24, 28, 34
_ONCE_PLACES = 20
"""Places of a block for what is written once, in each pass over the blocks."""
ONCE = 8
"""Sectors of each write of what is written once."""
_PASSES = 3
UNTOLD = 256
"""Operations of a slot that may be missing from a torn console."""
_STAYS = 12
"""Operations of a slot in one block."""
_WIDE = 16
_LOWER = 192
"""Sectors from the beginning of a block that the rewriting slots have."""


def deep_blocks(blocks: int) -> int:
    """How many blocks at the end of a disk of `blocks` the deep half has to itself."""
    return min(MOST_BLOCKS, blocks // 8)


class Depth:
    """The deep half on a disk of whole blocks `first` to `first + count - 1`.

    `frees`: whether zeroes and discards are among the requests; a slot writes instead.
    """

    def __init__(self, first: int, count: int, block_sectors: int, frees: bool = True) -> None:
        self.first, self.count, self.block_sectors = first, count, block_sectors
        self.frees = frees

    def operation(self, slot: int, seq: int) -> tuple[str, int, int]:
        """(kind, first sector, sectors) of an operation; (kind, 0, 0) of a flush."""
        if self._is_once(slot):
            rounds = self._rounds(slot)
            return WRITE if seq < rounds else READ, self._once(slot, seq % rounds), ONCE
        if slot in WAIT_FOR_A_WRITE:
            return FLUSH, 0, 0
        if _READ <= slot < _FLUSH:
            # Which one is for the guest to choose: it leaves nothing behind.
            return READ, self._once(0, 0), ONCE
        if _PAIR <= slot < _READ:
            return WRITE, self._block(0) + ONCE * (4 + (slot - _PAIR) // 2), ONCE
        if slot < FIRST_WITH_CALLS:
            block = self._block(seq // _STAYS)
            return WRITE, block + ONCE * (slot if slot < _PAIR else slot - 40), 1 + seq % ONCE
        place = self._block(seq // 3) + _LOWER + _WIDE * (slot - FIRST_WITH_CALLS)
        if seq % 3 == 1:
            kind = (ZERO if slot < 46 else DISCARD) if self.frees else WRITE
            return kind, place, _WIDE
        return (WRITE, place, _WIDE) if seq % 3 == 0 else (WRITE, place + 4, _WIDE // 2)

    def _block(self, number: int) -> int:
        """First sector of one of our blocks."""
        return (self.first + number % self.count) * self.block_sectors

    def _is_once(self, slot: int) -> bool:
        return slot < _PLACE or _FUA_ONCE <= slot < _FUA_PLACE

    def _rounds(self, slot: int) -> int:
        """How often a slot writes once; afterwards it reads."""
        return _PASSES * self.count * (1 if slot < _PLACE else 2)

    def _once(self, slot: int, seq: int) -> int:
        """What is written once in a block lies side by side, from its last sector downwards.

        The slots of queue 1 come to a new block together, and one of them writes its end: what
        cuts or overwrites the end of the file is only seen there. All other slots follow later.
        """
        block, place = seq, slot
        if slot >= _FUA_ONCE:
            block, place = seq // 2, _PLACE + 2 * (slot - _FUA_ONCE) + seq % 2
        below = ONCE * (_ONCE_PLACES * (block // self.count) + place + 1)
        return self._block(block) + self.block_sectors - below

    def writes_once(self, slot: int, seq: int) -> bool:
        return self._is_once(slot) and seq < self._rounds(slot)

    @staticmethod
    def number(slot: int, seq: int) -> int:
        """The number of a write, as it is in its content."""
        return DEEP | slot << 24 | seq

    @staticmethod
    def slot_of(number: int) -> tuple[int, int]:
        """(slot, seq) of a write's number."""
        return (number - DEEP) >> 24, number & 0xFFFFFF

    def extent(self, number: int) -> tuple[int, int]:
        """(first sector, sectors) of a write; (0, 0) where the number is of none."""
        slot, seq = self.slot_of(number)
        if slot >= SLOTS:
            return 0, 0
        kind, sector, length = self.operation(slot, seq)
        return (sector, length) if kind == WRITE else (0, 0)


class Left:
    """What a number of acknowledged operations has left on the disk.

    `last`: sector -> the write that is there. `also`: sector -> other writes that may be there
    instead. `freed`: sector -> the write that may still be there (discarded), or -1 (zeroes).
    """

    def __init__(self, depth: Depth, acked: dict[int, int], ended: bool) -> None:
        """`acked`: slot -> how many. Unless `ended` more were issued, of which nobody heard."""
        self.depth, self.acked, self.ended = depth, acked, ended
        self.last: dict[int, int] = {}
        self.also: dict[int, tuple[int, ...]] = {}
        self.freed: dict[int, int] = {}
        for slot in sorted(acked):
            for seq in range(acked[slot]):
                self._done(slot, seq)
            for seq in range(acked[slot], acked[slot] + (0 if ended else UNTOLD)):
                self._perhaps(slot, seq)

    def _done(self, slot: int, seq: int) -> None:
        kind, sector, length = self.depth.operation(slot, seq)
        number = self.depth.number(slot, seq)
        for i in range(sector, sector + length):
            before = self.last.get(i, -1)
            if kind == WRITE:
                if before >= 0 and self.depth.slot_of(before)[0] != slot:
                    self.also[i] = (before,)
                self.last[i] = number
                self.freed.pop(i, None)
            elif kind in (ZERO, DISCARD):
                self.freed[i] = before if kind == DISCARD else -1
                self.last.pop(i, None)

    def _perhaps(self, slot: int, seq: int) -> None:
        kind, sector, length = self.depth.operation(slot, seq)
        if kind in (ZERO, DISCARD):
            for i in range(sector, sector + length):
                if i in self.last:
                    self.freed[i] = self.last.pop(i)

    def may_be(self, number: int, sector: int) -> bool:
        """Whether a write that nobody acknowledged may have reached the sector."""
        slot, seq = self.depth.slot_of(number)
        first, count = self.depth.extent(number)
        done = self.acked.get(slot, 0)
        return not self.ended and done <= seq < done + UNTOLD and first <= sector < first + count
