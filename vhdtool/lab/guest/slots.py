"""The deep half of the load: every slot of depth.py has a request in flight.

Most slots use Linux's native asynchronous I/O, so that one process has all of their requests in
flight. Zeroes and discards have no asynchronous form, so each of those slots is a process that
waits in its system call. Acknowledgements are lines `deep SLOT:SEQ ...`, printed after the next
requests of these slots were issued.

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
"""Completions that are read at once: after a switch all slots have completed, and the paced writes
must not wait for all of them."""
BUFFER_BYTES = 8192
"""Size of a slot's buffer."""
CHECK_SECTORS = 128
"""Sectors of one read of `check`."""


def runs_of(sectors: list[int], step: int, most: int) -> list[tuple[int, int]]:
    """(first, length) of each run in a sorted list of extents of `step` sectors."""
    runs: list[tuple[int, int]] = []
    for sector in sectors:
        if runs and sector == sum(runs[-1]) and runs[-1][1] + step <= most:
            runs[-1] = (runs[-1][0], runs[-1][1] + step)
        else:
            runs.append((sector, step))
    return runs


def punch(fd: int, offset: int, length: int) -> None:
    """Write zeroes for which the device may free space, which BLKZEROOUT forbids."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    if call(fd, PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


class Aio:
    """Linux native asynchronous I/O, with a control block and a buffer for each slot."""

    def __init__(self) -> None:
        self.call = ctypes.CDLL(None, use_errno=True).syscall
        self.context = ctypes.c_ulong(0)
        self.blocks = bytearray(SLOTS * IOCB.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.blocks))
        self.memory = mmap.mmap(-1, SLOTS * BUFFER_BYTES)
        self.memory_at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.views = [
            memoryview(self.memory)[n * BUFFER_BYTES : (n + 1) * BUFFER_BYTES] for n in range(SLOTS)
        ]
        self.events = bytearray(AT_ONCE * EVENT.size)
        self.events_at = ctypes.addressof(ctypes.c_char.from_buffer(self.events))
        if self.call(SETUP, SLOTS, ctypes.byref(self.context)) < 0:
            raise OSError(ctypes.get_errno(), "io_setup")

    def prepare(self, slot: int, fd: int, code: int, sector: int, length: int) -> None:
        buffer = 0 if code == FDSYNC else self.memory_at + slot * BUFFER_BYTES
        IOCB.pack_into(
            self.blocks, slot * IOCB.size,
            slot, 0, 0, code, 0, fd, buffer, length * SECTOR, sector * SECTOR, 0, 0, 0,
        )  # fmt: skip

    def submit(self, slots: list[int]) -> None:
        """Issue the requests of these slots. Raises OSError when the kernel refuses one."""
        done = 0
        while done < len(slots):
            rest = slots[done:]
            pointers = (ctypes.c_ulong * len(rest))(*(self.base + n * IOCB.size for n in rest))
            taken = self.call(SUBMIT, self.context, ctypes.c_long(len(rest)), pointers)
            if taken < 0:
                raise OSError(ctypes.get_errno(), "io_submit")
            done += taken

    def completed(self, seconds: float) -> list[tuple[int, int]]:
        """(slot, bytes or negative errno) of some completions; wait at most so long for one."""
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
    """All slots. `emit` prints a line on the console."""

    def __init__(
        self,
        load: Schedule,
        depth: Depth,
        queues: tuple[str, str],
        emit: Callable[[str], None],
    ) -> None:
        self.load, self.depth, self.emit = load, depth, emit
        self.fds = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in queues]
        self.seqs = [0] * SLOTS
        self.written_once: dict[int, bytes] = {}
        """Content of acknowledged write-once extents, by first sector."""
        self.read_count = 0
        self.reads: dict[int, int] = {}
        """The sector that each reading slot reads; -1 for none of ours."""
        self.completions: list[tuple[int, int]] = []
        self.in_flight: set[int] = set()
        self.failed = 0
        self.stopping = mmap.mmap(-1, 4096)
        self.counts = mmap.mmap(-1, 4096)
        """Shared with the children: how many operations of each are acknowledged."""
        self.children: list[int] = []

    def start(self) -> None:
        for slot in range(FIRST_WITH_CALLS, SLOTS):
            child = os.fork()
            if child == 0:
                self._calls(slot)
            self.children.append(child)
        self.aio = Aio()
        self._issue(list(range(FIRST_WITH_CALLS)))
        self.emit(f"deep start {SLOTS}")

    def _next(self, slot: int, kind: str) -> list[int]:
        """The slots that continue after this one has completed an operation.

        QEMU does not throttle flushes, so a slot of flushes would be busy all the time: each
        flush follows a write.
        """
        if self.stopping[0]:
            return []
        behind = [flush for flush in FLUSHES.get(slot, ()) if flush not in self.in_flight]
        return behind if kind == FLUSH else [slot, *behind]

    def _issue(self, slots: list[int]) -> None:
        for slot in slots:
            self._prepare(slot)
        self.aio.submit(slots)
        self.in_flight.update(slots)

    def _prepare(self, slot: int) -> None:
        """Fill the slot's control block with its next operation."""
        seq = self.seqs[slot]
        kind, sector, length = self.depth.operation(slot, seq)
        fd = self.fds[slot >= FIRST_OF_QUEUE_2]
        if kind == WRITE:
            self.aio.views[slot][: length * SECTOR] = self._content(slot, seq)
        elif kind == READ:
            sectors = list(self.written_once)
            self.read_count += 1
            sector = sectors[self.read_count % len(sectors)] if sectors else sector
            self.reads[slot] = sector if sectors else -1
        code = PWRITE if kind == WRITE else PREAD if kind == READ else FDSYNC
        self.aio.prepare(slot, fd, code, sector, length)

    def _content(self, slot: int, seq: int) -> bytes:
        _, sector, length = self.depth.operation(slot, seq)
        number = self.depth.number(slot, seq)
        return b"".join(self.load.sector_content(number, sector + i) for i in range(length))

    def wait(self, seconds: float) -> bool:
        """Wait so long for completions, which `go_on` handles; False when there are none."""
        self.completions += self.aio.completed(seconds)
        return bool(self.completions)

    def go_on(self) -> None:
        """Acknowledge completions, after their slots have issued the next operations."""
        completions, self.completions = self.completions, []
        again: list[int] = []
        acknowledged = []
        for slot, result in completions:
            seq = self.seqs[slot]
            kind, sector, length = self.depth.operation(slot, seq)
            self.in_flight.discard(slot)
            if result != (0 if kind == FLUSH else length * SECTOR):
                self.failed += 1
                self.emit(f"deep error {slot} {seq} {-result if result < 0 else 5}")
                continue
            if kind == READ:
                self._compare(slot, length)
            elif self.depth.writes_once(slot, seq):
                self.written_once[sector] = bytes(self.aio.views[slot][: length * SECTOR])
            acknowledged.append(f"{slot}:{seq}")
            self.seqs[slot] = seq + 1
            again += self._next(slot, kind)
        if again:
            self._issue(again)
        if acknowledged:
            self.emit("deep " + " ".join(acknowledged))

    def _compare(self, slot: int, length: int) -> None:
        sector = self.reads.get(slot, -1)
        if sector >= 0 and self.aio.views[slot][: length * SECTOR] != self.written_once[sector]:
            self.emit(f"readback bad {self._number_at(sector)} {sector}")

    def _number_at(self, sector: int) -> int:
        """The number of the write that is recorded in the content for the sector."""
        return int.from_bytes(self.written_once[sector][12:20], "big")

    def _calls(self, slot: int) -> None:
        """Body of a child process: one system call after the other."""
        fd = self.fds[1]
        buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
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
                self.emit(f"deep error {slot} {seq} {error.errno or 5}")
                break
            self.emit(f"deep {slot}:{seq}")
            seq += 1
            struct.pack_into("<I", self.counts, 4 * slot, seq)
        os._exit(0)

    def check(self, read: Callable[[int, int], bytes]) -> None:
        """Compare all write-once extents, by `read(sector, sectors)`, which is not throttled."""
        bad = 0
        for first, sectors in runs_of(sorted(self.written_once), ONCE, CHECK_SECTORS):
            parts = range(first, first + sectors, ONCE)
            if read(first, sectors) == b"".join(self.written_once[sector] for sector in parts):
                continue
            for sector in parts:
                if read(sector, ONCE) != self.written_once[sector]:
                    bad += 1
                    self.emit(f"readback bad {self._number_at(sector)} {sector}")
        self.emit(f"deep checked {len(self.written_once)} {bad}")

    def stop(self) -> None:
        """Drain all slots."""
        self.stopping[0] = 1
        while self.in_flight:
            self.go_on()
            self.wait(1.0 if self.in_flight else 0.0)
        for child in self.children:
            os.waitpid(child, 0)
        for slot in range(FIRST_WITH_CALLS, SLOTS):
            (self.seqs[slot],) = struct.unpack_from("<I", self.counts, 4 * slot)

    def left(self) -> DeepContent:
        """What the deep half has left on the disk."""
        return DeepContent(self.depth, dict(enumerate(self.seqs)), ended=not self.failed)
