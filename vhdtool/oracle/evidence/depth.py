"""The deep half of the write load: many slots, each with one request in flight at any time.

A slot is a serial process: it issues operation `seq + 1` when `seq` has been acknowledged. So one
operation of nearly every slot is in flight at any moment, also when the guest is stopped. What a
slot does is a pure function of (slot, seq). Each slot writes extents of its own; only the two slots
of a pair share an extent, and write to it in no order.

Like schedule.py it runs in the guest and in the oracles, and imports nothing. A write's number
encodes its slot and seq; Schedule.sector_content makes its content.

    slots    queue  operations
    0..11    1      write an extent once: 4 KiB of a block that is new to all of them
    12..23   1      rewrite one extent in order, and change to another block after some time
    24..27   1      two pairs: both slots of a pair write the same 4 KiB, in no order
    28..33   1      read an extent that was written once, and compare
    34..35   1      flush
    36..39   2      write an extent once, with FUA
    40..43   2      rewrite one extent in order, with FUA
    44       2      write, write zeroes (in place), rewrite a part
    45       2      write, write zeroes (as a hole), rewrite a part
    46..47   2      write, discard, rewrite a part
"""

SLOTS = 48
LEAST_IN_FLIGHT = 32
"""Requests that must be in flight when the guest is stopped, for the case to test the drain."""
DEEP = 1 << 36
"""The first number of a write of the deep half; numbers of paced writes are smaller."""
MOST_BLOCKS = 64
WRITE, ZERO, DISCARD, FLUSH, READ = "write", "zero", "discard", "flush", "read"
FIRST_OF_QUEUE_2 = 36
FIRST_WITH_CALLS = 44
"""The first slot whose operations have no asynchronous system call."""
MAKES_HOLES = 45
"""The slot that writes zeroes as holes."""
WAIT_FOR_A_WRITE = (34, 35)
"""Slots that follow a write: flushes are not throttled, and would never pause otherwise."""
_FUA_ONCE, _FUA_REWRITE = 36, 40
_REWRITE, _PAIR, _READ, _FLUSH = 12, 24, 28, 34
_ONCE_EXTENTS = 20
"""Extents of a block that are written once, in each pass over the blocks."""
ONCE = 8
"""Sectors of an extent that is written once."""
_PASSES = 3
UNKNOWN = 256
"""Operations of a slot that may be missing from a torn console."""
_PER_BLOCK = 12
"""Operations of a rewriting slot in one block."""
_WIDE = 16
_LOWER = 192
"""Sectors at the beginning of a block that the rewriting slots use."""


def deep_blocks(blocks: int) -> int:
    """How many blocks at the end of a disk of `blocks` only the deep half uses."""
    return min(MOST_BLOCKS, blocks // 8)


class Depth:
    """The deep half, on the blocks `first` to `first + count - 1` of a disk.

    `frees`: whether slots write zeroes and discard; without it they write data instead.
    """

    def __init__(self, first: int, count: int, block_sectors: int, frees: bool = True) -> None:
        self.first, self.count, self.block_sectors = first, count, block_sectors
        self.frees = frees

    def operation(self, slot: int, seq: int) -> tuple[str, int, int]:
        """(kind, first sector, sectors) of an operation; a flush is (kind, 0, 0)."""
        if self._is_once(slot):
            rounds = self._rounds(slot)
            return WRITE if seq < rounds else READ, self._once(slot, seq % rounds), ONCE
        if slot in WAIT_FOR_A_WRITE:
            return FLUSH, 0, 0
        if _READ <= slot < _FLUSH:
            # The guest chooses which extent to read: a read changes nothing.
            return READ, self._once(0, 0), ONCE
        if _PAIR <= slot < _READ:
            return WRITE, self._block(0) + ONCE * (4 + (slot - _PAIR) // 2), ONCE
        if slot < FIRST_WITH_CALLS:
            block = self._block(seq // _PER_BLOCK)
            return WRITE, block + ONCE * (slot if slot < _PAIR else slot - 40), 1 + seq % ONCE
        sector = self._block(seq // 3) + _LOWER + _WIDE * (slot - FIRST_WITH_CALLS)
        if seq % 3 == 1:
            kind = (ZERO if slot < 46 else DISCARD) if self.frees else WRITE
            return kind, sector, _WIDE
        return (WRITE, sector, _WIDE) if seq % 3 == 0 else (WRITE, sector + 4, _WIDE // 2)

    def _block(self, number: int) -> int:
        """First sector of a block of the deep half; numbers wrap around."""
        return (self.first + number % self.count) * self.block_sectors

    def _is_once(self, slot: int) -> bool:
        return slot < _REWRITE or _FUA_ONCE <= slot < _FUA_REWRITE

    def _rounds(self, slot: int) -> int:
        """How many extents a slot writes once; afterwards it reads them."""
        return _PASSES * self.count * (1 if slot < _REWRITE else 2)

    def _once(self, slot: int, seq: int) -> int:
        """First sector of an extent that is written once.

        These extents fill a block from its last sector downwards. The slots of queue 1 reach a new
        block together, and one of them writes its end: only there a fault shows that cuts or
        overwrites the end of the file. All other slots reach the block later.
        """
        block, extent = seq, slot
        if slot >= _FUA_ONCE:
            block, extent = seq // 2, _REWRITE + 2 * (slot - _FUA_ONCE) + seq % 2
        below = ONCE * (_ONCE_EXTENTS * (block // self.count) + extent + 1)
        return self._block(block) + self.block_sectors - below

    def writes_once(self, slot: int, seq: int) -> bool:
        return self._is_once(slot) and seq < self._rounds(slot)

    @staticmethod
    def number(slot: int, seq: int) -> int:
        """The number of a write, which its content holds."""
        return DEEP | slot << 24 | seq

    @staticmethod
    def slot_of(number: int) -> tuple[int, int]:
        """(slot, seq) of a write's number."""
        return (number - DEEP) >> 24, number & 0xFFFFFF

    def extent(self, number: int) -> tuple[int, int]:
        """(first sector, sectors) of a write; (0, 0) if the operation is not a write."""
        slot, seq = self.slot_of(number)
        if slot >= SLOTS:
            return 0, 0
        kind, sector, length = self.operation(slot, seq)
        return (sector, length) if kind == WRITE else (0, 0)


class DeepContent:
    """What the disk may hold after a number of acknowledged operations.

    `last`: sector -> the last write. `also`: sector -> other writes that may be there instead.
    `freed`: sector -> the write that may still be there after a discard; -1 after zeroes.
    """

    def __init__(self, depth: Depth, acked: dict[int, int], ended: bool) -> None:
        """`acked`: slot -> acknowledged operations.

        Unless `ended`, UNKNOWN more operations of each slot may have been done.
        """
        self.depth, self.acked, self.ended = depth, acked, ended
        self.last: dict[int, int] = {}
        self.also: dict[int, tuple[int, ...]] = {}
        self.freed: dict[int, int] = {}
        for slot in sorted(acked):
            for seq in range(acked[slot]):
                self._do(slot, seq)
            if not ended and slot >= FIRST_WITH_CALLS:
                for seq in range(acked[slot], acked[slot] + UNKNOWN):
                    self._may_free(slot, seq)

    def _do(self, slot: int, seq: int) -> None:
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

    def _may_free(self, slot: int, seq: int) -> None:
        kind, sector, length = self.depth.operation(slot, seq)
        if kind in (ZERO, DISCARD):
            for i in range(sector, sector + length):
                if i in self.last:
                    self.freed[i] = self.last.pop(i)

    def may_hold(self, number: int, sector: int) -> bool:
        """Whether a sector may hold a write that was not acknowledged."""
        slot, seq = self.depth.slot_of(number)
        first, count = self.depth.extent(number)
        done = self.acked.get(slot, 0)
        return not self.ended and done <= seq < done + UNKNOWN and first <= sector < first + count
