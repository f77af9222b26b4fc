"""A lease that something else than the epoch record keeps: a lock manager, or the storage itself.

The keeper alone decides who has the disk. The epoch record stays the journal: it numbers every
open, activation and release, names the holder in refusals, and a change of it fences as ever.
"""

import contextlib
from pathlib import Path
from typing import Protocol

from vhdtool.errors import ActivationRefused, LeaseLost, VhdtoolError
from vhdtool.leases.epoch_record import EpochRecord, Holder
from vhdtool.leases.lease import EpochLease, owner_of
from vhdtool.leases.owner import Owner


class HeldByAnother(ActivationRefused):
    """The keeper says that another has the lease, and not that something is missing."""


class Keeper(Protocol):
    """What excludes. `check` may be called from any thread; the others come one at a time."""

    kind: str
    """What the record calls it."""
    forcible: bool
    """Whether the operator's word is enough to take the lease of another."""

    def take(self, force: bool, gone: Owner | None) -> None:
        """Makes the lease ours. Raises HeldByAnother while another has it, or ActivationRefused.

        `force`: the operator says that the holder is dead. `gone`: the holder of the record, whose
        process is known to be gone; the record may be old, and the lease another's since.
        """

    def check(self) -> None:
        """Raises LeaseLost unless the lease is still ours."""

    def give(self) -> None:
        """Gives it up; where it was lost already, nothing happens."""

    def close(self) -> None:
        """Frees what the object itself holds."""


class KeptLease(EpochLease):
    """A keeper's lease, with the epoch record as its journal."""

    def __init__(self, record: EpochRecord, owner: Owner, keeper: Keeper) -> None:
        super().__init__(record, owner)
        self.keeper = keeper
        self.besides = {"keeper": keeper.kind}

    def acquire(self, force_epoch: int | None = None) -> int:
        newest, held = self.record.read()
        named = newest if held is None else held.get("epoch")
        if force_epoch is not None and force_epoch != named:
            raise ActivationRefused(
                f"{self.record.path}: --force {force_epoch} names another epoch than {named}"
            )
        try:
            holder = None if held is None else owner_of(held)
            gone = holder if holder is not None and holder.is_gone() else None
            if held is not None and gone is None and force_epoch is None:
                self._same_keeper(held)
            self.keeper.take(force_epoch is not None, gone)
        except ActivationRefused as error:
            hint = ""
            if isinstance(error, HeldByAnother):
                hint = f"; by the record it is {holder} at epoch {named}" if holder else ""
                if self.keeper.forcible and force_epoch is None:
                    hint += f"; if that is certainly dead, --force {named}"
            raise ActivationRefused(f"{self.record.path}: {error}{hint}") from None
        try:
            # Whoever the record still names has lost the lease, or we had not got it.
            return super().acquire(None if not isinstance(named, int) else named)
        except BaseException:
            with contextlib.suppress(VhdtoolError):
                self.keeper.give()
            raise

    def _same_keeper(self, held: Holder) -> None:
        """A holder whose lease another keeper keeps, or the record alone, is unknown to ours."""
        theirs = held.get("keeper", "the epoch record alone")
        if theirs == self.keeper.kind:
            return
        dead = f" (if it is dead: once without --lease, with --force {held.get('epoch')})"
        raise HeldByAnother(
            f"the lease is kept by {theirs} there, and not by {self.keeper.kind}; deactivate the "
            f"disk there{'' if self.keeper.forcible else dead}, and use one --lease everywhere"
        )

    def check(self) -> None:
        try:
            self.keeper.check()
        except LeaseLost as error:
            raise LeaseLost(f"{self.record.path}: {error}; nothing more is written") from None
        super().check()

    def release(self) -> int:
        # The record first: whoever comes next shall find an epoch that is over.
        try:
            return super().release()
        finally:
            with contextlib.suppress(VhdtoolError):
                self.keeper.give()

    def close(self) -> None:
        self.keeper.close()
        super().close()


def kept_lease(path: Path, owner: Owner, keeper: Keeper) -> KeptLease:
    """The lease of the image whose epoch record is at `path`."""
    return KeptLease(EpochRecord(path), owner, keeper)
