"""The lease of a disk: who may use it, by the epoch record beside the image.

A holder keeps a lock (ALIVE) as long as it has the lease. That it can be taken proves nothing on
its own (a server drops the locks of a client that it has lost), so it counts as proof only for a
holder on this very host and boot, whose process must be gone as well.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.tapdisk.leases.epochs import ALIVE, EpochRecord, Holder


@dataclass(frozen=True)
class Owner:
    """A process that can hold a lease. `boot` names the kernel's run and the namespaces."""

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
        here = boot_id()
        if here == NO_PROOF or self.boot != here:
            return False
        try:
            return process_start(self.pid) != self.start
        except (OSError, OverflowError):
            return False

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"


NO_PROOF = "unknown"
"""The boot of a process whose /proc does not show its own pid namespace."""


def boot_id() -> str:
    """The kernel's run and our namespaces, or NO_PROOF where /proc shows another pid namespace.

    In a container with its host's /proc every pid means something else, and in another time
    namespace every process seems to have started at another time: a live holder would look gone.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return NO_PROOF
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return NO_PROOF
    try:
        return f"{boot}/{pids}/{os.stat('/proc/self/ns/time').st_ino}"
    except OSError:
        # A kernel before 5.6 has no such namespaces.
        return f"{boot}/{pids}"


def process_start(pid: int) -> int | None:
    """Clock ticks after boot at which a process started; None when there is none (proc(5)).

    Raises OSError when that cannot be told.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # A /proc mounted with hidepid shows no processes of others; kill() knows them all.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        raise
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


class EpochLease:
    """The lease that excludes: guard on."""

    def __init__(self, record: EpochRecord, owner: Owner) -> None:
        self.record = record
        self.owner = owner
        self.besides: Holder = {}
        """What the record says of the holder, besides who it is."""
        self.epoch: int | None = None
        self._mine: Holder | None = None
        """The holder as we wrote it: in a record that was made anew an epoch may come again."""
        self._good = b"-"
        """Sector 0 as it was when the lease was last found to be ours."""

    def acquire(self, force_epoch: int | None = None) -> int:
        record = self.record
        with record.mutex():
            newest, held = record.read()
            if held is not None:
                self._may_take_over(held, force_epoch)
            if not record.try_lock(ALIVE):
                if held is None or force_epoch is None:
                    raise ActivationRefused(
                        f"{record.path}: no living holder is named, but a process still has its "
                        "lock; find it with `lslocks`"
                    )
                # The operator's word weighs more than the lock of a process that may be stopped.
                record.renew()
            epoch = newest + 1
            holder: Holder = {**asdict(self.owner), **self.besides, "epoch": epoch}
            try:
                record.write(epoch, holder, self._entry("activate"))
            except BaseException:
                record.unlock(ALIVE)
                raise
            self.epoch, self._mine, self._good = epoch, holder, b"-"
            return epoch

    def _entry(self, what: str) -> Holder:
        return {"what": what, **asdict(self.owner)}

    def _may_take_over(self, held: Holder, force_epoch: int | None) -> None:
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
        if not self.record.is_current():
            raise LeaseLost(
                f"{self.record.path}: the epoch record was removed or replaced, as a forced "
                "activation does, while we held the lease; nothing more is written"
            )
        raw = self.record.raw()
        if raw == self._good:
            return
        newest, held = self.record.parse(raw)
        if self._mine is None or held != self._mine:
            now = "nobody" if held is None else f"{owner_of(held)} at epoch {held.get('epoch')}"
            raise LeaseLost(
                f"{self.record.path}: we held epoch {self.epoch}, now (epoch {newest}) the lease "
                f"is with {now}; nothing more is written"
            )
        self._good = raw

    def release(self) -> int:
        record = self.record
        with record.mutex():
            newest, held = record.read()
            # A lease that was taken from us is not ours to clear.
            left = None if held == self._mine else held
            record.write(newest + 1, left, self._entry("release"))
            self.epoch, self._mine, self._good = None, None, b"-"
            record.unlock(ALIVE)
            return newest + 1

    def note(self, what: str) -> int:
        with self.record.mutex():
            newest, held = self.record.read()
            self.record.write(newest + 1, held, self._entry(what))
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


def owner_of(held: Holder) -> Owner:
    """The owner that a record names; fields that make no sense name nobody who lives here."""

    def text(name: str) -> str:
        return str(held.get(name, "?"))

    def number(name: str) -> int:
        value = held.get(name, -1)
        return value if isinstance(value, int) else -1

    return Owner(text("host"), number("pid"), number("start"), text("boot"))


def open_lease(path: Path, owner: Owner, guard: bool) -> EpochLease:
    """The default backend: the epoch record beside the image."""
    record = EpochRecord(path)
    return EpochLease(record, owner) if guard else TrustingLease(record, owner)
