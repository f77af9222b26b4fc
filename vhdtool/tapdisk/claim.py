"""The claim of a disk on its image: image lock and lease, taken, checked, and lost."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from time import monotonic

from vhdtool.errors import LeaseLost, StateError, VhdtoolError
from vhdtool.leases.claim import named_holder
from vhdtool.leases.lease import Lease
from vhdtool.leases.location import forget_record, remember_record
from vhdtool.storage import Storage, StorageError
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.storage.paths import persistent_path
from vhdtool.tapdisk.access import Settings
from vhdtool.tapdisk.gate import Gate
from vhdtool.tapdisk.states import GateMode, StateTable

log = logging.getLogger("disk")
LEASE_CHECK = 0.1
"""Seconds: a request checks the lease when the last check is older. Every metadata write checks
it; this bounds the guest data that a holder can still write after it lost the lease."""


@dataclass(frozen=True)
class Attachment:
    """The image that a disk was attached to."""

    path: Path
    kind: str
    """One of KINDS of image.disk.open."""
    real: str
    """What the path led to when the epoch record was found."""
    record: Path | None
    """The epoch record of a file or device; None for a LUN, beside which no file can name it."""
    lease: Lease


class DiskClaim:
    """The lease of a disk and the lock on its image; fences the disk when one is lost."""

    def __init__(self, settings: Settings, states: StateTable, gate: Gate) -> None:
        self._settings, self._states, self._gate = settings, states, gate
        self.attachment: Attachment | None = None
        self.held = False
        """Whether the lease is ours; never with the guard off."""
        self.epoch: int | None = None
        """The epoch at which the open image was read."""
        self.storage: Storage | None = None
        """The file of the open image, which holds the lock."""
        self.checked = 0.0
        """time.monotonic() of the last check of the lease."""
        self._fencing = threading.Lock()
        self._wrote_pointer = False
        """Whether we have written the pointer beside the image that names the record."""

    @property
    def attached(self) -> Attachment:
        """What the disk is attached to."""
        assert self.attachment is not None
        return self.attachment

    @property
    def lease(self) -> Lease:
        return self.attached.lease

    # taking it

    def acquire(self, op: str, force_epoch: int | None) -> tuple[Storage, int, bool]:
        """Locks the image, then takes the lease. A refusal is emitted and changes nothing.

        Returns the image, our epoch, and whether the image may have no footer.
        """
        began = monotonic()
        try:
            storage = self._open_locked(force_epoch)
            try:
                with self._record_named():
                    if self._settings.guard:
                        # A holder that is proven gone, or forced away, may have left no footer.
                        unclean = self.lease.holder() is not None
                        epoch = self.lease.acquire(force_epoch)
                    else:
                        epoch, unclean = self.lease.append(op), True
            except BaseException:
                storage.close()
                raise
        except VhdtoolError as error:
            self._settings.emit("refused", op=op, reason=str(error))
            raise
        self._mark_checked(began)
        return storage, epoch, unclean

    def open_without_lease(self, op: str) -> tuple[Storage, int]:
        """Returns the image, opened without the lease, and the epoch of that."""
        at = self.attached
        storage = self._settings.open_storage(at.path, self._settings.access(False), at.kind)
        try:
            with self._record_named():
                return storage, self.lease.append(op)
        except BaseException:
            storage.close()
            raise

    def reopen_storage(self) -> Storage:
        """Opens the image's file anew, with the lock if the lease is ours."""
        at = self.attached
        return self._settings.open_storage(at.path, self._settings.access(self.held), at.kind)

    @contextmanager
    def _record_named(self) -> Iterator[None]:
        """Writes the pointer to a record elsewhere; one that a refusal would leave is removed."""
        at = self.attached
        if at.record is None or self._settings.read_only:
            yield
            return
        wrote = remember_record(at.path, at.record)
        try:
            yield
        except BaseException:
            if wrote:
                forget_record(at.path, at.record)
            raise
        self._wrote_pointer |= wrote

    def _open_locked(self, force_epoch: int | None) -> Storage:
        """Opens the image for serving. Raises ImageInUse, naming the holder in the record."""
        at = self.attached
        try:
            storage = self._settings.open_storage(at.path, self._settings.access(True), at.kind)
        except ImageInUse as error:
            raise named_holder(error, self.lease.holder(), force_epoch) from None
        if self._settings.guard and persistent_path(at.path) != at.real:
            storage.close()
            raise StateError(
                f"{at.path}: leads to another file than when it was attached ({at.real}), "
                "whose lease is another one; detach it, and attach it again"
            )
        return storage

    def release(self) -> int | None:
        """Releases the lease, or ends an open; returns the epoch of that, None for neither."""
        released = self.lease.release() if self.epoch is not None or self.held else None
        # Not before: a release that failed can be tried again.
        self.held, self.epoch = False, None
        return released

    def close(self) -> None:
        """Frees the lease, and removes our pointer to the record where that is no more."""
        at = self.attached
        at.lease.close()
        if self._wrote_pointer and at.record is not None and not os.path.lexists(at.record):
            forget_record(at.path, at.record)
        self._wrote_pointer = False

    # checking it

    def check(self) -> None:
        """Raises LeaseLost unless lease and file are still ours. Guard off: checks nothing."""
        self.lease.check()
        if self._settings.guard and self.storage is not None:
            self.storage.check_identity()

    def check_if_due(self) -> None:
        """Checks the lease when the last check is older than LEASE_CHECK. Raises LeaseLost."""
        now = monotonic()
        if now - self.checked > LEASE_CHECK:
            if self.held:
                self.check()
            self._mark_checked(now)

    def _mark_checked(self, began: float) -> None:
        """A check is valid for the time at which it `began`: we may have been stopped since."""
        self.checked = began
        self._gate.fast_path.extend(began + LEASE_CHECK - monotonic())

    def fence_if_lock_lost(self, error: StorageError) -> None:
        """Fences the disk when a request's error shows that another host got the image's lock."""
        if (
            self.held
            and error.errno == EIO
            and self.storage is not None
            and self.storage.lock_is_lost()
        ):
            self.fence(
                LeaseLost(
                    f"{self.attached.path}: the lock on the image is another's now, so each "
                    "request fails; nothing more is written"
                )
            )

    def fence(self, error: VhdtoolError) -> None:
        """Writes nothing more and refuses requests, until the operator deactivates the disk."""
        with self._fencing:
            if not self._states.allows("lost lease"):
                return
            self._states.change("lost lease")
        log.error("fenced: %s", error)
        self._gate.set(GateMode.REFUSE, drain=False, why=f"fenced: {error}")
        self._settings.emit("fenced", epoch=self.epoch, reason=str(error))
