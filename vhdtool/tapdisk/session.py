"""The open image of a disk: read with or without the lease, reopened, closed and fenced."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from time import monotonic
from typing import Any

from vhdtool.errors import (
    ActivationRefused,
    LeaseLost,
    SplitBrain,
    StateError,
    UncleanImage,
    VhdtoolError,
)
from vhdtool.image.disk.base import Hooks, OpenDisk
from vhdtool.image.disk.open import open_disk
from vhdtool.image.disk.tapdisk2 import Tapdisk2
from vhdtool.leases.claim import named_holder
from vhdtool.leases.lease import Lease
from vhdtool.leases.location import remember_record
from vhdtool.storage import Storage, StorageError
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.storage.paths import on_nfs, persistent_path
from vhdtool.tapdisk.access import Settings
from vhdtool.tapdisk.failpoint import reached
from vhdtool.tapdisk.gate import Gate
from vhdtool.tapdisk.states import GateMode, ReopenMode, State, StateTable

log = logging.getLogger("disk")
_FENCED = State.FENCED
"""As gate._HOLD."""
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


class ImageSession:
    """What a disk has open, and the epoch at which its metadata was read."""

    def __init__(self, settings: Settings, states: StateTable, gate: Gate) -> None:
        self._settings, self._states, self._gate = settings, states, gate
        self.attachment: Attachment | None = None
        self.size = 0
        """Of the disk, in bytes; 0 while it is unknown."""
        self.image_filter: Callable[[OpenDisk], OpenDisk] | None = None
        """Wraps each image that is opened from now on."""
        self.image: OpenDisk | None = None
        self.epoch: int | None = None
        self.holds_lease = False
        self.reported: frozenset[str] = frozenset()
        """Kinds of request that reach the image without an event; each is reported once."""
        self.allocations = 0
        self.checked = 0.0
        """time.monotonic() of the last check of the lease."""
        self._storage: Storage | None = None
        self._reopens = 0
        self._times: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def lease(self) -> Lease:
        return self._attached.lease

    @property
    def _attached(self) -> Attachment:
        assert self.attachment is not None
        return self.attachment

    # from reading the metadata to closing the image

    def open_with_lease(
        self, op: str, event: str, force_epoch: int | None = None, implicit: bool = False
    ) -> None:
        """Locks the image, takes the lease, then reads the metadata. A refusal changes nothing."""
        began = monotonic()
        guard = self._settings.guard
        storage, epoch, unclean = self._acquire(op, force_epoch)
        self._lease_checked(began)
        reached("leased")
        kill_footer = op == "unpause" and not self._settings.read_only
        try:
            self._load(storage, epoch, unclean=unclean, kill_footer=kill_footer, exclusive=guard)
        except (VhdtoolError, OSError) as error:
            released = self.lease.release()
            self._settings.emit("refused", op=op, reason=str(error), released=released)
            if isinstance(error, UncleanImage):
                raise ActivationRefused(str(error)) from error
            raise
        self.holds_lease = guard
        fields = {"began_mono": began, **self._times} | ({"implicit": True} if implicit else {})
        self._settings.emit(event, epoch=epoch, lease=guard, **fields)

    def _acquire(self, op: str, force_epoch: int | None) -> tuple[Storage, int, bool]:
        """Returns the locked image, our epoch, and whether the image may have no footer."""
        try:
            storage = self._open_locked(force_epoch)
            try:
                self._remember_record()
                if not self._settings.guard:
                    return storage, self.lease.append(op), True
                holder = self.lease.holder()
                # A holder that is proven gone, or forced away, may have left no footer.
                return storage, self.lease.acquire(force_epoch), holder is not None
            except BaseException:
                storage.close()
                raise
        except VhdtoolError as error:
            self._settings.emit("refused", op=op, reason=str(error))
            raise

    def open_without_lease(self, op: str, event: str, **extra: Any) -> None:
        """Reads the metadata without the lease."""
        at = self._attached
        storage = self._settings.open_storage(at.path, self._settings.access(False), at.kind)
        try:
            self._remember_record()
            epoch = self.lease.append(op)
        except BaseException:
            storage.close()
            raise
        self._load(storage, epoch, unclean=True, kill_footer=False)
        self._settings.emit(event, epoch=epoch, **self._times, **extra)

    def _remember_record(self) -> None:
        at = self._attached
        if at.record is not None and not self._settings.read_only:
            remember_record(at.path, at.record)

    def _open_locked(self, force_epoch: int | None) -> Storage:
        """Opens the image for serving. Raises ImageInUse, naming the holder in the record."""
        at = self._attached
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

    def _load(
        self,
        storage: Storage,
        epoch: int,
        unclean: bool,
        kill_footer: bool,
        exclusive: bool = False,
    ) -> None:
        self._times = {"read_mono": monotonic()}
        at, guard = self._attached, self._settings.guard
        try:
            image = open_disk(
                storage,
                str(at.path),
                kind=at.kind,
                exclusive=exclusive,
                unclean=unclean,
                policy=None if guard else Tapdisk2(kill_footer, not on_nfs(at.path)),
                whole=True,
                hooks=Hooks(self.check_lease, self._allocated, reached),
            )
        except BaseException:
            storage.close()
            raise
        try:
            if image.size != self.size:
                raise StateError(
                    f"{at.path}: the disk has {image.size} bytes, it was attached with {self.size}"
                )
            if self.image_filter is not None:
                image = self.image_filter(image)
        except BaseException:
            image.abandon()
            raise
        self.image, self._storage = image, storage
        self.epoch = epoch
        self.reported = frozenset({"flush"})

    def _allocated(self, block: int, sector: int) -> None:
        self.allocations += 1
        self._settings.emit("allocated", epoch=self.epoch, block=block, sector=sector)

    def drop(self, op: str) -> None:
        """Abandons an image that was read without the lease."""
        if self.image is not None:
            log.info("%s: the image read at epoch %s is dropped", op, self.epoch)
            self.image.abandon()
            self.image, self.epoch = None, None

    def end(self, event: str, give_up: bool = False) -> None:
        """Closes the image, releases the lease, and emits when metadata was last written.

        A standby and a fenced disk write nothing. Where the footer cannot be written the image
        stays open and the lease ours, unless we `give_up`.
        """
        fields: dict[str, Any] = {"ended": self.epoch, "wrote_footer": False}
        fields["began_mono"] = monotonic()
        failure: Exception | None = None
        image = self.image
        if image is not None:
            try:
                if self._may_write():
                    fields["wrote_footer"] = image.finish()
            except (LeaseLost, SplitBrain) as error:
                self.fence(error)
                failure = error
            except (VhdtoolError, OSError) as error:
                if not give_up:
                    raise
                failure = error
            fields["last_metadata_mono"] = image.last_metadata
            fields["truncated_to"] = image.truncated_to
            self.image = None
            image.abandon()
            reached("closed")
        if self._reopens:
            fields["reopens"] = self._reopens
        if self.epoch is not None or self.holds_lease:
            fields["epoch"] = self.lease.release()
        self.holds_lease, self.epoch, self._reopens = False, None, 0
        reached("released")
        self._settings.emit(event, **fields)
        if failure is not None:
            raise failure

    def _may_write(self) -> bool:
        fenced = self._states.current is State.FENCED
        return not fenced and (self.holds_lease or not self._settings.guard)

    def parents(self) -> list[tuple[str, bool]]:
        """Returns (path, whether it is raw) of each parent of the open image, nearest first."""
        parent = None if self.image is None else self.image.parent
        layers = () if parent is None else parent.layers
        return [(layer.storage.name, layer.metadata is None) for layer in layers]

    # what a request needs

    def ready(self, kind: str) -> OpenDisk:
        """Returns the image that serves a request now. Raises LeaseLost, or OSError for none."""
        image = self.image
        if image is None or self._states.current is _FENCED:
            raise OSError(EIO, "the disk is not open")
        now = monotonic()
        if now - self.checked > LEASE_CHECK:
            if self.holds_lease:
                self.check_lease()
            self._lease_checked(now)
        if kind not in self.reported:
            self._report(kind)
        return image

    def _report(self, kind: str) -> None:
        """Emits the first request, and the first write, since the metadata was read."""
        with self._lock:
            if not self.reported & {"read", "write"}:
                self._settings.emit("first-request", epoch=self.epoch, request=kind)
            if kind == "write" and kind not in self.reported:
                self._settings.emit("first-write", epoch=self.epoch)
            self.reported |= {kind}

    def reopen(self, mode: ReopenMode) -> None:
        """Closes and reopens the image before a request; only the first time emits an event.

        Raises OSError (EIO) when the lease or the image cannot be had.
        """
        if self._states.current is State.FENCED:
            raise OSError(EIO, "the disk is not open")
        try:
            if self._settings.guard and not self.holds_lease:
                self._states.require("first request")
                self.drop("reopen")
                self.open_with_lease("request", "activated", implicit=True)
                self._states.change("first request")
            elif self._reopens == 0 and not self._settings.guard:
                self._close()
                self.open_without_lease("reopen", "opened", implicit=True, mode=mode)
            else:
                # Later cycles keep epoch and lease: the record would be nothing but them.
                epoch, reported, times = self.epoch, self.reported, self._times
                assert epoch is not None
                guard = self._settings.guard
                storage = self._reopened()
                self._load(storage, epoch, unclean=True, kill_footer=False, exclusive=guard)
                self.reported, self._times = reported, times
        except (ActivationRefused, StateError, UncleanImage) as error:
            raise OSError(EIO, str(error)) from error
        self._reopens += 1

    def _reopened(self) -> Storage:
        """Closes the image and opens its file anew; a lock on it is held all the time."""
        old = self._storage
        settings, at = self._settings, self._attached
        if old is None or not (settings.guard and old.holds_lock) or settings.read_only:
            self._close()
            return settings.open_storage(at.path, settings.access(self.holds_lease), at.kind)
        if self.image is not None:
            self.image.finish()
        storage = old.reopened()
        image, self.image = self.image, None
        if image is not None:
            image.abandon()
        return storage

    def _close(self) -> None:
        image = self.image
        if image is not None:
            image.finish()
            self.image = None
            image.abandon()

    # the lease

    def _lease_checked(self, began: float) -> None:
        """Notes a check of the lease: it is valid for when it `began`, for we may have slept."""
        self.checked = began
        self._gate.fast_path.extend(began + LEASE_CHECK - monotonic())

    def check_lease(self) -> None:
        """Raises LeaseLost unless lease and file are still ours. Guard off: checks nothing."""
        self.lease.check()
        if self._settings.guard and self._storage is not None:
            self._storage.check_identity()

    def fence_if_lock_lost(self, error: StorageError) -> None:
        """Fences the disk when a request's error shows that another host got the image's lock."""
        if (
            self.holds_lease
            and error.errno == EIO
            and self._storage is not None
            and self._storage.lock_is_lost()
        ):
            self.fence(
                LeaseLost(
                    f"{self._attached.path}: the lock on the image is another's now, so each "
                    "request fails; nothing more is written"
                )
            )

    def fence(self, error: VhdtoolError) -> None:
        """Writes nothing more and refuses requests, until the operator deactivates the disk."""
        with self._lock:
            if not self._states.allows("lost lease"):
                return
            self._states.change("lost lease")
        log.error("fenced: %s", error)
        self._gate.set(GateMode.REFUSE, drain=False, why=f"fenced: {error}")
        self._settings.emit("fenced", epoch=self.epoch, reason=str(error))
