"""The deep half of the load inside the guest: every slot of depth.py has a request in flight.

Most slots are served by Linux's native asynchronous I/O, so that one process keeps all of them in
flight. Zeroes and discards have no asynchronous form, so each of these slots is a process of its
own, which waits in its system call. Each acknowledgement is a line `deep SLOT:SEQ ...`, said
after the next request of these slots was issued.

Source: io_submit(2), linux/aio_abi.h, linux/fs.h (BLKDISCARD, BLKZEROOUT).
"""

import ctypes
import fcntl
import mmap
import os
import struct
from _collections_abc import Callable

from depth import (  # type: ignore[import-not-found, unused-ignore]
    FIRST_OF_QUEUE_2,
    FIRST_WITH_CALLS,
    FLUSH,
    MAKES_HOLES,
    ONCE,
    READ,
    SLOTS,
    WRITE,
    ZERO,
    DeepContent,
    Depth,
)
from schedule import SECTOR, Schedule  # type: ignore[import-not-found, unused-ignore]

SETUP, GETEVENTS, SUBMIT = 206, 208, 209
PREAD, PWRITE, FDSYNC = 0, 1, 3
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
PUNCH_HOLE = 3
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE, of linux/falloc.h."""
IOCB = struct.Struct("<QIIHhIQQqQII")
EVENT = struct.Struct("<QQqq")
FLUSHES = {12: (34,), 18: (35,)}
"""Which slot a flush follows."""
AT_ONCE = 4
"""Operations that are acknowledged at once: after a switch all have ended, and the paced writes
shall not wait for all of them."""
ROOM = 8192
"""Bytes of a slot's buffer."""
ROOM_OF_A_READ = 128
"""Sectors that are checked at once."""


def runs_of(places: list[int], step: int, most: int) -> list[tuple[int, int]]:
    """(first, sectors) of each run of neighbours in a sorted list of places of `step` sectors."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place == sum(runs[-1]) and runs[-1][1] + step <= most:
            runs[-1] = (runs[-1][0], runs[-1][1] + step)
        else:
            runs.append((place, step))
    return runs


def punch(fd: int, offset: int, length: int) -> None:
    """Zeroes for which the device may free its space: BLKZEROOUT tells it not to."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    if call(fd, PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


class Aio:
    """One queue to the kernel with a control block and a buffer for each slot."""

    def __init__(self) -> None:
        self.call = ctypes.CDLL(None, use_errno=True).syscall
        self.context = ctypes.c_ulong(0)
        self.blocks = bytearray(SLOTS * IOCB.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.blocks))
        self.memory = mmap.mmap(-1, SLOTS * ROOM)
        self.memory_at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.views = [memoryview(self.memory)[n * ROOM : (n + 1) * ROOM] for n in range(SLOTS)]
        self.events = bytearray(AT_ONCE * EVENT.size)
        self.events_at = ctypes.addressof(ctypes.c_char.from_buffer(self.events))
        if self.call(SETUP, SLOTS, ctypes.byref(self.context)) < 0:
            raise OSError(ctypes.get_errno(), "io_setup")

    def prepare(self, slot: int, fd: int, code: int, sector: int, length: int) -> None:
        at = self.memory_at + slot * ROOM
        if code == FDSYNC:
            at = 0
        IOCB.pack_into(
            self.blocks, slot * IOCB.size,
            slot, 0, 0, code, 0, fd, at, length * SECTOR, sector * SECTOR, 0, 0, 0,
        )  # fmt: skip

    def submit(self, slots: list[int]) -> None:
        """Raises OSError when the kernel does not take them all."""
        done = 0
        while done < len(slots):
            rest = slots[done:]
            pointers = (ctypes.c_ulong * len(rest))(*(self.base + n * IOCB.size for n in rest))
            taken = self.call(SUBMIT, self.context, ctypes.c_long(len(rest)), pointers)
            if taken < 0:
                raise OSError(ctypes.get_errno(), "io_submit")
            done += taken

    def ended(self, seconds: float) -> list[tuple[int, int]]:
        """(slot, bytes or negative errno) of some that ended; waits at most so long for one."""
        whole = int(seconds)
        time = struct.pack("<qq", whole, int((seconds - whole) * 1e9))
        got = self.call(
            GETEVENTS, self.context, ctypes.c_long(1), ctypes.c_long(AT_ONCE),
            ctypes.c_void_p(self.events_at), time,
        )  # fmt: skip
        found = []
        for n in range(max(got, 0)):
            slot, _, result, _ = EVENT.unpack_from(self.events, n * EVENT.size)
            found.append((slot, result))
        return found


class Deep:
    """All slots. `say` puts a line on the console."""

    def __init__(
        self, load: Schedule, depth: Depth, queues: tuple[str, str], say: Callable[[str], None]
    ) -> None:
        self.load, self.depth, self.say = load, depth, say
        self.fds = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in queues]
        self.seqs = [0] * SLOTS
        self.kept: dict[int, bytes] = {}
        """What was written once, and is acknowledged: by its first sector."""
        self.looked = 0
        self.reads: dict[int, int] = {}
        """What each slot that reads is reading."""
        self.ended: list[tuple[int, int]] = []
        self.flying: set[int] = set()
        self.failed = 0
        self.stopping = mmap.mmap(-1, 4096)
        self.counts = mmap.mmap(-1, 4096)
        """Shared with the children: the operations that each has had acknowledged."""
        self.children: list[int] = []

    def start(self) -> None:
        for slot in range(FIRST_WITH_CALLS, SLOTS):
            child = os.fork()
            if child == 0:
                self._calls(slot)
            self.children.append(child)
        self.aio = Aio()
        self._issue(list(range(FIRST_WITH_CALLS)))
        self.say(f"deep start {SLOTS}")

    def _next(self, slot: int, kind: str) -> list[int]:
        """The slots that go on once this one has ended an operation.

        Nobody holds up a flush, so these slots would do nothing else: each follows a write.
        """
        if self.stopping[0]:
            return []
        behind = [flush for flush in FLUSHES.get(slot, ()) if flush not in self.flying]
        return behind if kind == FLUSH else [slot, *behind]

    def _issue(self, slots: list[int]) -> None:
        for slot in slots:
            self._prepare(slot)
        self.aio.submit(slots)
        self.flying.update(slots)

    def _prepare(self, slot: int) -> None:
        """Fills the slot's control block with its next operation."""
        seq = self.seqs[slot]
        kind, sector, length = self.depth.operation(slot, seq)
        fd = self.fds[slot >= FIRST_OF_QUEUE_2]
        if kind == WRITE:
            self.aio.views[slot][: length * SECTOR] = self._content(slot, seq)
        elif kind == READ:
            places = list(self.kept)
            self.looked += 1
            sector = places[self.looked % len(places)] if places else sector
            self.reads[slot] = sector if places else -1
        code = PWRITE if kind == WRITE else PREAD if kind == READ else FDSYNC
        self.aio.prepare(slot, fd, code, sector, length)

    def _content(self, slot: int, seq: int) -> bytes:
        _, sector, length = self.depth.operation(slot, seq)
        number = self.depth.number(slot, seq)
        return b"".join(self.load.sector_content(number, sector + i) for i in range(length))

    def wait(self, seconds: float) -> bool:
        """Waits so long for something to end, which `go_on` then sees; False when nothing has."""
        self.ended += self.aio.ended(seconds)
        return bool(self.ended)

    def go_on(self) -> None:
        """What has ended is acknowledged, after its slots have issued their next operations."""
        ended, self.ended = self.ended, []
        again: list[int] = []
        told = []
        for slot, result in ended:
            seq = self.seqs[slot]
            kind, sector, length = self.depth.operation(slot, seq)
            self.flying.discard(slot)
            if result != (0 if kind == FLUSH else length * SECTOR):
                self.failed += 1
                self.say(f"deep error {slot} {seq} {-result if result < 0 else 5}")
                continue
            if kind == READ:
                self._compare(slot, length)
            elif self.depth.writes_once(slot, seq):
                self.kept[sector] = bytes(self.aio.views[slot][: length * SECTOR])
            told.append(f"{slot}:{seq}")
            self.seqs[slot] = seq + 1
            again += self._next(slot, kind)
        if again:
            self._issue(again)
        if told:
            self.say("deep " + " ".join(told))

    def _compare(self, slot: int, length: int) -> None:
        sector = self.reads.get(slot, -1)
        if sector >= 0 and self.aio.views[slot][: length * SECTOR] != self.kept[sector]:
            self.say(f"readback bad {self._number_at(sector)} {sector}")

    def _number_at(self, sector: int) -> int:
        """Of the write whose content is kept for the sector."""
        return int.from_bytes(self.kept[sector][12:20], "big")

    def _calls(self, slot: int) -> None:
        """The life of a child: one system call after the other."""
        fd = self.fds[1]
        buffer = memoryview(mmap.mmap(-1, ROOM))
        seq = 0
        while not self.stopping[0]:
            kind, sector, length = self.depth.operation(slot, seq)
            try:
                if kind == WRITE:
                    data = self._content(slot, seq)
                    buffer[: len(data)] = data
                    if os.pwritev(fd, [buffer[: len(data)]], sector * SECTOR) != len(data):
                        raise OSError(5, "short write")
                elif slot == MAKES_HOLES:
                    punch(fd, sector * SECTOR, length * SECTOR)
                else:
                    code = BLKZEROOUT if kind == ZERO else BLKDISCARD
                    fcntl.ioctl(fd, code, struct.pack("<QQ", sector * SECTOR, length * SECTOR))
            except OSError as error:
                self.say(f"deep error {slot} {seq} {error.errno or 5}")
                break
            self.say(f"deep {slot}:{seq}")
            seq += 1
            struct.pack_into("<I", self.counts, 4 * slot, seq)
        os._exit(0)

    def check(self, read: Callable[[int, int], bytes]) -> None:
        """Reads all that was written once by `read(sector, sectors)`, which is not held up."""
        bad = 0
        for first, sectors in runs_of(sorted(self.kept), ONCE, ROOM_OF_A_READ):
            parts = range(first, first + sectors, ONCE)
            if read(first, sectors) == b"".join(self.kept[at] for at in parts):
                continue
            for at in parts:
                if read(at, ONCE) != self.kept[at]:
                    bad += 1
                    self.say(f"readback bad {self._number_at(at)} {at}")
        self.say(f"deep checked {len(self.kept)} {bad}")

    def stop(self) -> None:
        """Returns when nothing is in flight any more."""
        self.stopping[0] = 1
        while self.flying:
            self.go_on()
            self.wait(1.0 if self.flying else 0.0)
        for child in self.children:
            os.waitpid(child, 0)
        for slot in range(FIRST_WITH_CALLS, SLOTS):
            (self.seqs[slot],) = struct.unpack_from("<I", self.counts, 4 * slot)

    def left(self) -> DeepContent:
        """What is on the disk now."""
        return DeepContent(self.depth, dict(enumerate(self.seqs)), ended=not self.failed)
