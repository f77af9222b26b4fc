"""A lease that a lock manager, or the storage itself, holds beside the epoch record.

The backend alone decides who has the disk. The epoch record stays the journal: it numbers every
open, activation and release, names the holder in refusals, and fences the disk when it changes.
"""

import contextlib
from typing import Protocol

from vhdtool.errors import ActivationRefused, LeaseLost, VhdtoolError
from vhdtool.leases.epoch_record import EpochRecord, Fields
from vhdtool.leases.lease import EpochLease, Holder, owner_of
from vhdtool.leases.owner import Owner


class HeldByAnother(ActivationRefused):
    """Raised when another owner holds the lease; other refusals mean that something is missing."""


class LeaseBackend(Protocol):
    """What excludes other owners. `check` is thread-safe; the other methods come one at a time."""

    kind: str
    """Its name in the epoch record, in the field `keeper`."""
    forcible: bool
    """Whether the operator can take another owner's lease with --force."""

    def acquire(self, force: bool, gone: Owner | None) -> None:
        """Takes the lease. Raises HeldByAnother while another owner has it, or ActivationRefused.

        `force`: the operator says that the holder is dead. `gone`: the holder in the record, whose
        process is proven gone; the record may be old, and another owner may have the lease since.
        """

    def check(self) -> None:
        """Raises LeaseLost unless the lease is still ours."""

    def release(self) -> None:
        """Releases the lease; does nothing when it was lost."""

    def close(self) -> None:
        """Frees what the object holds."""


class ExternalLease:
    """The lease of a backend, with the epoch record as its journal."""

    def __init__(self, record: EpochRecord, owner: Owner, backend: LeaseBackend) -> None:
        self.record, self.owner, self.backend = record, owner, backend
        self._epochs = EpochLease(record, owner, {"keeper": backend.kind})

    @property
    def epoch(self) -> int | None:
        return self._epochs.epoch

    def acquire(self, force_epoch: int | None = None) -> int:
        newest, held = self.record.read()
        epoch = newest if held is None else held.get("epoch")
        if force_epoch is not None and force_epoch != epoch:
            raise ActivationRefused(
                f"{self.record.path}: --force {force_epoch} names another epoch than {epoch}"
            )
        try:
            holder = None if held is None else owner_of(held)
            gone = holder if holder is not None and holder.is_gone() else None
            if held is not None and gone is None and force_epoch is None:
                self._require_same_backend(held)
            self.backend.acquire(force_epoch is not None, gone)
        except ActivationRefused as error:
            hint = ""
            if isinstance(error, HeldByAnother):
                hint = f"; by the record it is {holder} at epoch {epoch}" if holder else ""
                if self.backend.forcible and force_epoch is None:
                    hint += f"; if that is certainly dead, --force {epoch}"
            raise ActivationRefused(f"{self.record.path}: {error}{hint}") from None
        try:
            # A holder that the record still names has lost the lease, or we had not got it.
            return self._epochs.acquire(epoch if isinstance(epoch, int) else None)
        except BaseException:
            with contextlib.suppress(VhdtoolError):
                self.backend.release()
            raise

    def _require_same_backend(self, held: Fields) -> None:
        """Refuses a holder by another backend, or by the record alone: ours does not know it."""
        theirs = held.get("keeper", "the epoch record alone")
        if theirs == self.backend.kind:
            return
        dead = f" (if it is dead: once without --lease, with --force {held.get('epoch')})"
        raise HeldByAnother(
            f"the lease is held by {theirs} there, and not by {self.backend.kind}; deactivate the "
            f"disk there{'' if self.backend.forcible else dead}, and use one --lease everywhere"
        )

    def check(self) -> None:
        try:
            self.backend.check()
        except LeaseLost as error:
            raise LeaseLost(f"{self.record.path}: {error}; nothing more is written") from None
        self._epochs.check()

    def release(self) -> int:
        # The record first: the next holder must find an epoch that has ended.
        try:
            return self._epochs.release()
        finally:
            with contextlib.suppress(VhdtoolError):
                self.backend.release()

    def append(self, what: str) -> int:
        return self._epochs.append(what)

    def holder(self) -> Holder | None:
        return self._epochs.holder()

    def close(self) -> None:
        self.backend.close()
        self._epochs.close()
