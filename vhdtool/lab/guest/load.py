"""The load, the program inside the guest: it writes, acknowledges on the console, and reads back.

It runs under `python3 -I -S` in the initramfs and imports only the interpreter's core, `mmap` and
`ctypes`, because nothing else is there. Its commands come on the console, because the kernel
command line of a guest that starts from a saved memory is fixed:

    go SEED PACE_US BLOCK_SECTORS DEEP FREES    write until `stop`, one write each PACE_US;
                                                the last DEEP blocks belong to slots.py
    check                                       read all write-once sectors, `deep checked N BAD`
    stop                                        drain, flush, print `stopped N`
    readback                                    read everything, `readback done CHECKED BAD`

An `acked N` line leaves the guest only after the write call has returned, and the disk is open
with O_DIRECT, so the acknowledgement has passed every cache of the guest.
"""

import mmap
import os
import time

from depth import Depth  # type: ignore[import-not-found, unused-ignore]
from schedule import SECTOR, Schedule  # type: ignore[import-not-found, unused-ignore]
from slots import Deep, runs_of  # type: ignore[import-not-found, unused-ignore]

DISK = "/dev/vda"
QUEUES = ("/dev/vdb", "/dev/vdc")
"""The same disk by two more devices, which QEMU throttles; the second writes through."""
BAD_LINES = 20
"""Damaged sectors that are printed; the last line has the full count."""
CHUNK = 64 * 1024
FLUSH_SECONDS = 0.001


class Console:
    """Lines in and out on the serial port."""

    def __init__(self) -> None:
        self.pending = b""

    def emit(self, text: str) -> None:
        data = text.encode() + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def line(self, wait: bool) -> str | None:
        """The next command; None when none has arrived and `wait` is false."""
        while b"\n" not in self.pending:
            os.set_blocking(0, wait)
            try:
                data = os.read(0, 4096)
            except BlockingIOError:
                return None
            if not data and not wait:
                return None
            self.pending += data.replace(b"\r", b"\n")
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode(errors="replace").strip()


class Disk:
    """The block device with one aligned buffer, as O_DIRECT needs it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.sectors = os.lseek(self.fd, 0, os.SEEK_END) // SECTOR
        self.buffer = memoryview(mmap.mmap(-1, CHUNK))

    def write(self, sector: int, data: bytes) -> None:
        self.buffer[: len(data)] = data
        done = os.pwritev(self.fd, [self.buffer[: len(data)]], sector * SECTOR)
        if done != len(data):
            raise OSError(5, "short write")

    def read(self, sector: int, sectors: int) -> bytes:
        length = sectors * SECTOR
        if os.preadv(self.fd, [self.buffer[:length]], sector * SECTOR) != length:
            raise OSError(5, "short read")
        return bytes(self.buffer[:length])

    def flush(self) -> None:
        os.fsync(self.fd)


def write_load(
    console: Console, disk: Disk, load: Schedule, deep: Deep, pace_us: int
) -> tuple[int, list[int]]:
    """Write until `stop`; return the number of writes and which of them failed."""
    n = 0
    failed: list[int] = []
    due = time.monotonic()
    while True:
        command = console.line(wait=False)
        if command == "stop":
            return n, failed
        if command == "check":
            deep.check(disk.read)
        try:
            disk.write(load.extent(n)[0], load.content(n))
            console.emit(f"acked {n}")
        except OSError as error:
            failed.append(n)
            console.emit(f"error {n} {error.errno or 0}")
        n += 1
        deep.go_on()
        # A late writer does not catch up: a burst after the switch would hide the pace.
        due = max(due + pace_us / 1e6, time.monotonic() - pace_us / 1e6)
        # Also when the write is late, so that requests are in flight on a slow machine too. The
        # paced write comes first then, as it does after a switch.
        while deep.wait(max(0.0, due - time.monotonic())) and time.monotonic() < due:
            deep.go_on()


def readback(
    console: Console, disk: Disk, load: Schedule, deep: Deep, count: int, failed: list[int]
) -> None:
    """Compare every written sector with the last write that covered it."""
    last: dict[int, int] = {}
    for n in range(count):
        sector, length = load.extent(n)
        for i in range(sector, sector + length):
            last[i] = n
    for n in failed:
        sector, length = load.extent(n)
        for i in range(sector, sector + length):
            last.pop(i, None)
    deep_content = deep.left()
    last.update(deep_content.last)
    checked = bad = 0
    for first, length in runs_of(sorted(last), 1, CHUNK // SECTOR):
        checked += length
        try:
            data = disk.read(first, length)
        except OSError as error:
            console.emit(f"error {last[first]} {error.errno or 0}")
            bad += length
            continue
        expected = b"".join(load.sector_content(last[s], s) for s in range(first, first + length))
        if data == expected:
            continue
        for i in range(length):
            found = data[i * SECTOR : (i + 1) * SECTOR]
            others = deep_content.also.get(first + i, ())
            if found != expected[i * SECTOR : (i + 1) * SECTOR] and not any(
                found == load.sector_content(n, first + i) for n in others
            ):
                bad += 1
                if bad <= BAD_LINES:
                    console.emit(f"readback bad {last[first + i]} {first + i}")
    console.emit(f"readback done {checked} {bad}")


def switch_address_spaces() -> None:
    """Start a second process that only wakes up, so that the kernel reloads CR3 all the time.

    QEMU 7.2's TCG does not flush its TLB when a live migration clears the dirty bits of memory.
    Writes through such an entry do not set the bit, the page is not sent again, and the guest
    crashes at the destination (6 of some 400 migrations on a busy machine, 0 of 120 with this
    process). Loading CR3 flushes that TLB. A guest with many processes does it by itself.
    """
    if os.fork() == 0:
        while True:
            time.sleep(FLUSH_SECONDS)


def main() -> None:
    switch_address_spaces()
    console = Console()
    disk = Disk(DISK)
    load: Schedule | None = None
    deep: Deep | None = None
    count, failed = 0, list[int]()
    console.emit("ready")
    while True:
        words = (console.line(wait=True) or "").split()
        if len(words) == 6 and words[0] == "go":
            seed, pace_us, block, reserved, frees = (int(word) for word in words[1:])
            load = Schedule(seed, disk.sectors, block, reserved)
            whole = disk.sectors // block
            first = -(-disk.sectors // block) - reserved
            deep = Deep(load, Depth(first, whole - first, block, bool(frees)), QUEUES, console.emit)
            console.emit(f"start {seed}")
            deep.start()
            count, failed = write_load(console, disk, load, deep, pace_us)
            deep.stop()
            disk.flush()
            console.emit(f"stopped {count}")
        elif words == ["readback"] and load is not None and deep is not None:
            readback(console, disk, load, deep, count, failed)
        elif words:
            console.emit("unknown " + " ".join(words))


main()
