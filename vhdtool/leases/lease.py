"""The lease of a disk, by the epoch record beside the image.

A holder locks the byte ALIVE as long as it has the lease. That the byte is free proves nothing by
itself, because a server drops the locks of a client that it has lost. It counts as proof only for a
holder of this host and boot whose process is gone as well.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple, Protocol

from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.leases.epoch_record import ALIVE, EpochRecord, Fields
from vhdtool.leases.owner import Owner
from vhdtool.storage import StorageError
from vhdtool.storage.paths import on_nfs


class Holder(NamedTuple):
    """Who holds a lease, and since which epoch."""

    owner: Owner
    epoch: int

    def __str__(self) -> str:
        return f"{self.owner} at epoch {self.epoch}"


class Lease(Protocol):
    """What the shim needs of a lease of any kind."""

    def acquire(self, force_epoch: int | None = None) -> int:
        """Takes the lease at a new epoch. Raises ActivationRefused while another owner holds it."""

    def check(self) -> None:
        """Raises LeaseLost unless the lease is still ours at our epoch."""

    def release(self) -> int:
        """Releases the lease, or ends an open; returns the epoch of that."""

    def append(self, what: str) -> int:
        """Appends an event to the record, without the lease; returns its epoch."""

    def holder(self) -> Holder | None:
        """Returns who holds the lease now."""

    def close(self) -> None:
        """Frees what the object holds; does not release the lease."""


class EpochLease:
    """The lease that excludes other owners, with the guard on."""

    def __init__(self, record: EpochRecord, owner: Owner, extra: Fields | None = None) -> None:
        """`extra`: what the record says of the holder besides the owner."""
        self.record = record
        self.owner = owner
        self.epoch: int | None = None
        self._extra = extra or {}
        self._mine: Fields | None = None
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
            mine: Fields = {**asdict(self.owner.now()), **self._extra, "epoch": epoch}
            if not record.try_lock(ALIVE):
                if held is None or force_epoch is None:
                    raise ActivationRefused(
                        f"{record.path}: no living holder is named, but a process still has its "
                        "lock; find it with `lslocks`"
                    )
                # The operator overrules the lock of a process that may be stopped.
                record.renew(epoch, mine)
            try:
                record.reserve(epoch + 1)
                record.write(epoch, mine, entry("activate", self.owner))
            except BaseException:
                record.remove_empty()
                record.unlock(ALIVE)
                raise
            self.epoch, self._mine, self._good = epoch, mine, b"-"
            return epoch

    def _may_take_over(self, held: Fields, force_epoch: int | None) -> None:
        """Raises unless the holder is proven gone, or the operator names its epoch."""
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
            # A lease that was taken from us is another owner's, and stays.
            left = None if held == self._mine else held
            record.write(newest + 1, left, entry("release", self.owner))
            self.epoch, self._mine, self._good = None, None, b"-"
            record.unlock(ALIVE)
            return newest + 1

    def append(self, what: str) -> int:
        return self.record.append(entry(what, self.owner))

    def holder(self) -> Holder | None:
        newest, held = self.record.read()
        if held is None:
            return None
        epoch = held.get("epoch")
        return Holder(owner_of(held), epoch if isinstance(epoch, int) else newest)

    def close(self) -> None:
        self.record.close()


class UnguardedLease:
    """Guard off: writes the same record and excludes nobody, as tapdisk2 did."""

    def __init__(self, record: EpochRecord, owner: Owner) -> None:
        self._record, self._owner = record, owner

    def acquire(self, force_epoch: int | None = None) -> int:
        del force_epoch
        return self.append("activate")

    def check(self) -> None:
        """Never raises."""

    def release(self) -> int:
        return self.append("release")

    def append(self, what: str) -> int:
        return self._record.append(entry(what, self._owner))

    def holder(self) -> Holder | None:
        return None

    def close(self) -> None:
        self._record.close()


class ReaderLease:
    """The lease of a read-only disk: excludes nobody and leaves no record."""

    def acquire(self, force_epoch: int | None = None) -> int:
        return 0

    def check(self) -> None:
        """Never raises."""

    def release(self) -> int:
        return 0

    def append(self, what: str) -> int:
        return 0

    def holder(self) -> Holder | None:
        return None

    def close(self) -> None:
        """Holds nothing."""


def entry(what: str, owner: Owner) -> Fields:
    """Returns what the record says of an event."""
    return {"what": what, **asdict(owner)}


def owner_of(held: Fields) -> Owner:
    """Returns the owner that a record names; a senseless field names no process of this host."""
    known: Fields = {"host": "?", "pid": -1, "start": -1, "boot": "?"}
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


def open_lease(path: Path, owner: Owner) -> EpochLease:
    """Returns the lease whose epoch record is at `path`."""
    return EpochLease(EpochRecord(path), owner)
