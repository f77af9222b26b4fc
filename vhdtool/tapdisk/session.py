"""One metadata read of a disk: how it begins (with or without the lease), and how it ends."""

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
from vhdtool.image.disk.hooks import Hooks
from vhdtool.image.disk.open import VHD, OpenImage, open_image
from vhdtool.leases.claim import named_holder
from vhdtool.leases.lease import Lease
from vhdtool.leases.location import remember_record
from vhdtool.nbd.backend import FastPathGate, NoFastPath
from vhdtool.storage import Storage
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.storage.paths import on_nfs, persistent_path
from vhdtool.tapdisk.access import Access
from vhdtool.tapdisk.failpoint import reached
from vhdtool.tapdisk.gate import Gate

log = logging.getLogger("disk")
LEASE_CHECK = 0.1
"""Seconds: a request that finds the last look at the lease older than this looks again. Metadata
writes always look; this bounds what a holder who lost the lease can still do to guest data."""
Emit = Callable[..., None]
"""emit(event, **fields): one event of the disk."""


@dataclass(frozen=True)
class Settings:
    """How a shim behaves; fixed for the life of its process."""

    guard: bool
    open_storage: Callable[[Path, Access, str], Storage]
    """(path, access, kind of image) -> the open image, locked as the access asks."""
    open_lease: Callable[[Path], Lease]
    emit: Emit
    read_only: bool = False
    fast_path_gate: Callable[[], FastPathGate] = NoFastPath
    """Makes a disk's gate in the fast path (`nbd.fast_path.new_gate`)."""

    def access(self, leased: bool) -> Access:
        """How an image is opened, with the lease or without it."""
        if not self.guard:
            return Access.TRUSTING_READER if self.read_only else Access.TRUSTING
        if not leased:
            return Access.LOOK
        return Access.SHARED if self.read_only else Access.ACTIVE


class Reading:
    """The open image of a disk, and the epoch of the read that it came from."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = "detached"
        self.path = Path()
        self._real = ""
        """What the path led to when the epoch record was looked for."""
        self._record: Path | None = None
        """The epoch record of a file or device; a LUN has no place where it could be remembered."""
        self.size = 0
        self.kind = VHD
        """What the file is, one of openimage's KINDS."""
        self.layer: Callable[[OpenImage], OpenImage] | None = None
        """What stands between the requests and an image that has been opened."""
        self._gate = Gate(settings.fast_path_gate())
        self._telling = threading.Lock()
        self._lease: Lease | None = None
        self._image: OpenImage | None = None
        self._storage: Storage | None = None
        """What the image was opened on."""
        self._read_epoch: int | None = None
        self._holds_lease = False
        self._looked = 0.0
        self._told: set[str] = set()
        self._reopens = 0
        self._since_read: dict[str, Any] = {}
        self.allocations = 0

    def _take(self, op: str, event: str, force_epoch: int | None, implicit: bool = False) -> None:
        """The lock, the lease, then the metadata. On a refusal everything is as before."""
        assert self._lease is not None
        began = monotonic()
        guard = self.settings.guard
        extra: dict[str, Any] = {"implicit": True} if implicit else {}
        try:
            storage = self._open_storage(force_epoch)
            try:
                self._remember_record()
                if guard:
                    holder = self._lease.holder()
                    epoch = self._lease.acquire(force_epoch)
                    # A holder that is proven gone, or forced, may have left no footer.
                    unclean = holder is not None
                else:
                    epoch, unclean = self._lease.note(op), True
            except BaseException:
                storage.close()
                raise
        except VhdtoolError as error:
            self.settings.emit("refused", op=op, reason=str(error))
            raise
        self._has_looked(began)
        reached("leased")
        kill_footer = op == "unpause" and not self.settings.read_only
        try:
            self._load(storage, epoch, unclean=unclean, kill_footer=kill_footer, exclusive=guard)
        except (VhdtoolError, OSError) as error:
            released = self._lease.release()
            self.settings.emit("refused", op=op, reason=str(error), released=released)
            if isinstance(error, UncleanImage):
                raise ActivationRefused(str(error)) from error
            raise
        self._holds_lease = guard
        since = {"began_mono": began, **self._since_read}
        self.settings.emit(event, epoch=epoch, lease=guard, **since, **extra)

    def _read(self, op: str, event: str, **extra: Any) -> None:
        """The metadata without the lease: an open."""
        assert self._lease is not None
        storage = self.settings.open_storage(self.path, self.settings.access(False), self.kind)
        try:
            self._remember_record()
            epoch = self._lease.note(op)
        except BaseException:
            storage.close()
            raise
        self._load(storage, epoch, unclean=True, kill_footer=False)
        self.settings.emit(event, epoch=epoch, **self._since_read, **extra)

    def _remember_record(self) -> None:
        if self._record is not None and not self.settings.read_only:
            remember_record(self.path, self._record)

    def _open_storage(self, force_epoch: int | None) -> Storage:
        """The image for serving. Raises ImageInUse, naming whom the record knows as its user."""
        try:
            storage = self.settings.open_storage(self.path, self.settings.access(True), self.kind)
        except ImageInUse as error:
            assert self._lease is not None
            raise named_holder(error, self._lease.held(), force_epoch) from None
        if self.settings.guard and persistent_path(self.path) != self._real:
            storage.close()
            raise StateError(
                f"{self.path}: leads to another file than when it was attached ({self._real}), "
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
        self._since_read = {"read_mono": monotonic()}
        try:
            image = self._open_image(storage, unclean, kill_footer, exclusive)
        except BaseException:
            storage.close()
            raise
        try:
            if image.size != self.size:
                raise StateError(
                    f"{self.path}: the disk has {image.size} bytes, it was attached with "
                    f"{self.size}"
                )
            if self.layer is not None:
                image = self.layer(image)
        except BaseException:
            image.abandon()
            raise
        self._image, self._storage = image, storage
        self._read_epoch = epoch
        self._told = {"flush"}

    def _has_looked(self, began: float) -> None:
        """A look at the lease proves it for when it `began`: we may have been stopped since."""
        self._looked = began
        self._gate.fast_path.extend(began + LEASE_CHECK - monotonic())

    def _open_image(
        self, storage: Storage, unclean: bool, kill_footer: bool, exclusive: bool
    ) -> OpenImage:
        assert self._lease is not None
        guard = self.settings.guard
        return open_image(
            storage,
            str(self.path),
            kind=self.kind,
            exclusive=exclusive,
            faithful=not guard,
            unclean=unclean,
            kill_footer=kill_footer,
            preallocate=guard or not on_nfs(self.path),
            whole=True,
            hooks=Hooks(self._check_lease, self._allocated, reached),
        )

    def _check_lease(self) -> None:
        """Raises LeaseLost unless lease and file are still ours. Guard off: nothing is asked."""
        assert self._lease is not None
        self._lease.check()
        if self.settings.guard and self._storage is not None:
            self._storage.check_identity()

    def _lock_is_lost(self, error: Exception) -> bool:
        """Whether an error of the storage comes from a lock that was given to another host."""
        return (
            self._holds_lease
            and getattr(error, "errno", None) == EIO
            and self._storage is not None
            and self._storage.lock_is_lost()
        )

    def _allocated(self, block: int, sector: int) -> None:
        self.allocations += 1
        self.settings.emit("allocated", epoch=self._read_epoch, block=block, sector=sector)

    def _drop_read(self, op: str) -> None:
        """A standby's early read is thrown away before the one that counts."""
        if self._image is not None:
            log.info("%s: the early read of epoch %s is dropped", op, self._read_epoch)
            self._image.abandon()
            self._image, self._read_epoch = None, None

    def _end_read(self, event: str, give_up: bool = False) -> None:
        """Closes what is open, gives the lease up, and tells when the last metadata was written.

        A standby never writes, a fenced disk never again: both are closed untouched. Where the
        footer cannot be written the image stays open and ours, unless we `give_up`.
        """
        fields: dict[str, Any] = {"ended": self._read_epoch, "wrote_footer": False}
        fields["began_mono"] = monotonic()
        failure: Exception | None = None
        image = self._image
        if image is not None:
            untouched = self.state == "fenced" or (self.settings.guard and not self._holds_lease)
            try:
                if not untouched:
                    fields["wrote_footer"] = image.finish()
            except (LeaseLost, SplitBrain) as error:
                self._fence(error)
                failure = error
            except (VhdtoolError, OSError) as error:
                if not give_up:
                    raise
                failure = error
            fields["last_metadata_mono"] = image.last_metadata
            fields["truncated_to"] = image.truncated_to
            self._image = None
            image.abandon()
            reached("closed")
        if self._reopens:
            fields["reopens"] = self._reopens
        self._finish(event, fields)
        if failure is not None:
            raise failure

    def _finish(self, event: str, fields: dict[str, Any]) -> None:
        if self._lease is not None and (self._read_epoch is not None or self._holds_lease):
            fields["epoch"] = self._lease.release()
        self._holds_lease = False
        self._read_epoch = None
        self._reopens = 0
        reached("released")
        self.settings.emit(event, **fields)

    def _first(self, kind: str) -> None:
        """Each metadata read tells once that it serves, and once that it is written on."""
        with self._telling:
            if not self._told & {"read", "write"}:
                self.settings.emit("first-request", epoch=self._read_epoch, request=kind)
            if kind == "write" and kind not in self._told:
                self.settings.emit("first-write", epoch=self._read_epoch)
            self._told = self._told | {kind}

    def _fence(self, error: VhdtoolError) -> None:
        """Write nothing more, stay up, serve errors; the operator has to look."""
        with self._telling:
            if self.state == "fenced":
                return
            self.state = "fenced"
        log.error("fenced: %s", error)
        self._gate.set("refuse", drain=False, why=f"fenced: {error}")
        self.settings.emit("fenced", epoch=self._read_epoch, reason=str(error))
