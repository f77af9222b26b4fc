"""The lease of a disk: who may use it, by the epoch record beside the image.

A holder keeps a lock (ALIVE) as long as it has the lease. That it can be taken proves nothing on
its own (a server drops the locks of a client that it has lost), so it counts as proof only for a
holder on this very host and boot, whose process must be gone as well.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Protocol

from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.leases.epoch_record import ALIVE, EpochRecord, Holder
from vhdtool.leases.owner import Owner
from vhdtool.storage import StorageError
from vhdtool.storage.paths import on_nfs


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

    def held(self) -> "tuple[Owner, int] | None":
        """Who holds the lease now, and its epoch."""

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
            # Ours, where an earlier release failed: a full disk, or a stopped process in its way.
            if held is not None and held != self._mine:
                self._may_take_over(held, force_epoch)
            epoch = newest + 1
            holder: Holder = {**asdict(self.owner.now()), **self.besides, "epoch": epoch}
            if not record.try_lock(ALIVE):
                if held is None or force_epoch is None:
                    raise ActivationRefused(
                        f"{record.path}: no living holder is named, but a process still has its "
                        "lock; find it with `lslocks`"
                    )
                # The operator's word weighs more than the lock of a process that may be stopped.
                record.renew(epoch, holder)
            try:
                record.reserve(epoch + 1)
                record.write(epoch, holder, self._entry("activate"))
            except BaseException:
                record.remove_empty()
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
        if owner.is_gone():
            return
        if owner.is_namesake() and on_nfs(self.record.path):
            raise ActivationRefused(
                f"{self.record.path}: the lease is held by {owner} at epoch {epoch}, another "
                f"machine called {owner.node} as this one is: an NFS server takes both for one "
                "client, and its locks exclude neither; rename one of them, and restart it"
            )
        if force_epoch is not None and force_epoch == epoch:
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
        try:
            raw = self.record.raw()
        except StorageError:
            if not self.record.lost(ALIVE):
                raise
            raise LeaseLost(
                f"{self.record.path}: the server has given our lock on the epoch record to "
                "another host; nothing more is written"
            ) from None
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
        held = self.held()
        return None if held is None else held[0]

    def held(self) -> tuple[Owner, int] | None:
        newest, held = self.record.read()
        if held is None:
            return None
        epoch = held.get("epoch")
        return owner_of(held), epoch if isinstance(epoch, int) else newest

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

    def held(self) -> tuple[Owner, int] | None:
        return None


class ReaderLease:
    """That of a reader which cannot write: it asks for nothing, and leaves no record."""

    def acquire(self, force_epoch: int | None = None) -> int:
        return 0

    def check(self) -> None:
        """There is nothing to lose."""

    def release(self) -> int:
        return 0

    def note(self, what: str) -> int:
        return 0

    def holder(self) -> Owner | None:
        return None

    def held(self) -> tuple[Owner, int] | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


def owner_of(held: Holder) -> Owner:
    """The owner that a record names; fields that make no sense name nobody who lives here."""
    known: dict[str, object] = {"host": "?", "pid": -1, "start": -1, "boot": "?"}
    for field in fields(Owner):
        value = held.get(field.name)
        if field.name in ("pid", "start"):
            good = type(value) is int
        elif field.name == "since":
            good = type(value) in (int, float)
        else:
            good = isinstance(value, str)
        if good:
            known[field.name] = value
    return Owner(**known)  # type: ignore[arg-type]


def open_lease(path: Path, owner: Owner, guard: bool) -> EpochLease:
    """The default backend: the epoch record beside the image."""
    record = EpochRecord(path)
    return EpochLease(record, owner) if guard else TrustingLease(record, owner)
