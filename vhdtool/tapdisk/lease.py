"""The lease of a disk: an epoch record beside the image, on the shared storage.

The record is a file of 512-byte sectors. Sector 0 says what holds now: the newest epoch and the
holder, if any. Sector n is what happened at epoch n (open, activate, release), written once. So
epochs order every metadata read and every release of all hosts without comparing their clocks.

Two byte-range locks (OFD locks: they belong to the open file, and die with the process):
- MUTEX is held for the instant in which the record changes;
- ALIVE is held by the holder as long as it has the lease. That it can be taken proves nothing on
  its own (a server drops the locks of a client that it has lost), so it counts as proof only for
  a holder on this very host and boot, whose process must be gone as well.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from vhdtool.errors import ActivationRefused, LeaseLost, VhdtoolError

SECTOR = 512
MUTEX = 1 << 40
ALIVE = (1 << 40) + 1
MUTEX_PATIENCE = 5.0
"""Seconds; the mutex is held for microseconds, so a longer wait means a stopped process."""
_FLOCK = "hhqqi4x"


@dataclass(frozen=True)
class Owner:
    """A process that can hold a lease. `boot` names the kernel's run and the pid namespace."""

    host: str
    pid: int
    start: int
    boot: str

    @classmethod
    def here(cls, host: str) -> "Owner":
        """This process, on the host that its operator calls `host`."""
        return cls(host, os.getpid(), process_start(os.getpid()) or 0, boot_id())

    def is_gone(self) -> bool:
        """True when this process is proven to be gone; False where there is no proof."""
        return self.boot == boot_id() and process_start(self.pid) != self.start

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"


def boot_id() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def process_start(pid: int) -> int | None:
    """Clock ticks after boot at which a process started; None when there is none (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])


class Lease(Protocol):
    """What the shim asks of a lease, whatever keeps it."""

    def acquire(self, force_epoch: int | None = None) -> int:
        """Takes the lease at a new epoch. Raises ActivationRefused while another holds it."""

    def check(self) -> None:
        """Raises LeaseLost unless the lease is still ours at our epoch."""

    def release(self) -> int:
        """Gives the lease up (or ends an open); returns the epoch of that."""

    def note(self, what: str) -> int:
        """Appends to the record without asking for anything; returns the epoch."""

    def holder(self) -> "Owner | None":
        """Who holds the lease now."""

    def close(self) -> None:
        """Frees what the object itself holds; it does not release the lease."""


class EpochRecord:
    """The file. All methods may be called from any thread of one process."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self.owner = owner
        self._fd = self._open()
        # One aligned sector for O_DIRECT; guarded by the lock below.
        self._buffer = mmap.mmap(-1, 4096)
        self._view = memoryview(self._buffer)[:SECTOR]
        self._lock = threading.Lock()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            # NFS may answer a buffered read from its cache; O_DIRECT asks the server.
            return os.open(self.path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise VhdtoolError(f"{self.path}: cannot open the epoch record: {error}") from error
        return os.open(self.path, flags, 0o600)

    def read(self) -> tuple[int, dict[str, object] | None]:
        """(newest epoch, holder as written or None); (0, None) for a new file."""
        with self._lock:
            got = os.preadv(self._fd, [self._view], 0)
            text = bytes(self._view[:got]).rstrip(b"\0 \n")
        if not text:
            return 0, None
        try:
            state = json.loads(text)
            return int(state["epoch"]), state["holder"]
        except (ValueError, KeyError, TypeError) as error:
            raise LeaseLost(
                f"{self.path}: the epoch record is damaged ({text[:40]!r}); stop all users of the "
                "image, then remove the file"
            ) from error

    def write(self, epoch: int, holder: dict[str, object] | None, what: str) -> None:
        """The record's sector of `epoch` first, so that sector 0 never names one that is absent."""
        entry = {"epoch": epoch, "what": what, **asdict(self.owner), "time": time.time()}
        self._write_sector(epoch, entry)
        self._write_sector(0, {"epoch": epoch, "holder": holder})
        os.fdatasync(self._fd)

    def _write_sector(self, number: int, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        if len(data) >= SECTOR:
            raise VhdtoolError(f"{self.path}: host name too long for the epoch record")
        with self._lock:
            self._view[:] = data.ljust(SECTOR - 1) + b"\n"
            if os.pwritev(self._fd, [self._view], number * SECTOR) != SECTOR:
                raise VhdtoolError(f"{self.path}: short write to the epoch record")

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        deadline = time.monotonic() + MUTEX_PATIENCE
        while not self.try_lock(MUTEX):
            if time.monotonic() > deadline:
                raise ActivationRefused(
                    f"{self.path}: another process has held the record's lock for "
                    f"{MUTEX_PATIENCE:.0f} s; find it with `lslocks`, it may be stopped"
                )
            time.sleep(0.001)
        try:
            yield
        finally:
            self.unlock(MUTEX)

    def try_lock(self, byte: int) -> bool:
        try:
            self._ofd(fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise VhdtoolError(f"{self.path}: cannot lock the epoch record: {error}") from error
        return True

    def unlock(self, byte: int) -> None:
        self._ofd(fcntl.F_UNLCK, byte)

    def _ofd(self, kind: int, byte: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, 0, byte, 1, 0))

    def close(self) -> None:
        os.close(self._fd)


class EpochLease:
    """The lease that excludes: guard on."""

    def __init__(self, record: EpochRecord) -> None:
        self.record = record
        self.epoch: int | None = None

    def acquire(self, force_epoch: int | None = None) -> int:
        record = self.record
        with record.mutex():
            newest, held = record.read()
            if held is not None:
                self._may_take_over(held, force_epoch)
            if not record.try_lock(ALIVE):
                raise ActivationRefused(
                    f"{record.path}: no holder is named, but a live process still has its lock"
                )
            holder = {**asdict(record.owner), "epoch": newest + 1}
            record.write(newest + 1, holder, "activate")
            self.epoch = newest + 1
            return newest + 1

    def _may_take_over(self, held: dict[str, object], force_epoch: int | None) -> None:
        """Returns when the holder is proven gone or the operator names its epoch; else raises."""
        epoch = held.get("epoch")
        owner = owner_of(held)
        if force_epoch is not None and force_epoch == epoch:
            return
        if owner.is_gone():
            return
        hint = (
            f"deactivate it there; if that host is certainly dead, --force {epoch}"
            if force_epoch is None
            else f"--force {force_epoch} names another epoch"
        )
        raise ActivationRefused(
            f"{self.record.path}: the lease is held by {owner} at epoch {epoch}; {hint}"
        )

    def check(self) -> None:
        newest, held = self.record.read()
        if self.epoch is None or held is None or held.get("epoch") != self.epoch:
            now = "nobody" if held is None else f"{owner_of(held)} at epoch {held.get('epoch')}"
            raise LeaseLost(
                f"{self.record.path}: we held epoch {self.epoch}, now (epoch {newest}) the lease "
                f"is with {now}; nothing more is written"
            )

    def release(self) -> int:
        record = self.record
        with record.mutex():
            newest, held = record.read()
            ours = held is not None and held.get("epoch") == self.epoch
            # A lease that was taken from us is not ours to clear.
            record.write(newest + 1, None if ours or held is None else held, "release")
            self.epoch = None
            with contextlib.suppress(OSError):
                record.unlock(ALIVE)
            return newest + 1

    def note(self, what: str) -> int:
        with self.record.mutex():
            newest, held = self.record.read()
            self.record.write(newest + 1, held, what)
            return newest + 1

    def holder(self) -> Owner | None:
        held = self.record.read()[1]
        return None if held is None else owner_of(held)

    def close(self) -> None:
        self.record.close()


class TrustingLease(EpochLease):
    """Guard off: writes the same record, and excludes no one, as tapdisk2 did."""

    def acquire(self, force_epoch: int | None = None) -> int:
        del force_epoch
        self.epoch = self.note("activate")
        return self.epoch

    def check(self) -> None:
        return None

    def release(self) -> int:
        self.epoch = None
        return self.note("release")

    def holder(self) -> Owner | None:
        return None


def owner_of(held: dict[str, object]) -> Owner:
    def text(name: str) -> str:
        return str(held.get(name, "?"))

    def number(name: str) -> int:
        value = held.get(name, -1)
        return value if isinstance(value, int) else -1

    return Owner(text("host"), number("pid"), number("start"), text("boot"))


def open_lease(path: Path, owner: Owner, guard: bool) -> EpochLease:
    """The default backend: the epoch record beside the image."""
    record = EpochRecord(path, owner)
    return EpochLease(record) if guard else TrustingLease(record)


LeaseFactory = Callable[[Path, Owner, bool], Lease]
