"""The open image of a disk: read with or without the lease, reopened, and closed."""

import logging
import threading
from collections.abc import Callable
from errno import EIO
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
from vhdtool.storage import Storage
from vhdtool.storage.paths import on_nfs
from vhdtool.tapdisk.access import Settings
from vhdtool.tapdisk.claim import DiskClaim
from vhdtool.tapdisk.failpoint import reached
from vhdtool.tapdisk.states import ReopenMode, State, StateTable
from vhdtool.vhd.units import size_text

log = logging.getLogger("disk")
_FENCED = State.FENCED
"""As gate._HOLD."""


class ImageSession:
    """The open image of a disk, from reading its metadata to closing it."""

    def __init__(self, settings: Settings, states: StateTable, claim: DiskClaim) -> None:
        self._settings, self._states, self._claim = settings, states, claim
        self.size = 0
        """Of the disk, in bytes; 0 while it is unknown."""
        self.image_filter: Callable[[OpenDisk], OpenDisk] | None = None
        """Wraps each image that is opened from now on."""
        self.image: OpenDisk | None = None
        self.reported: frozenset[str] = frozenset()
        """Kinds of request that reach the image without an event; each is reported once."""
        self.allocations = 0
        self._reopens = 0
        self._times: dict[str, Any] = {}
        self._reporting = threading.Lock()

    # from reading the metadata to closing the image

    def open_with_lease(
        self, op: str, event: str, force_epoch: int | None = None, implicit: bool = False
    ) -> None:
        """Locks the image, takes the lease, then reads the metadata. A refusal changes nothing."""
        began = monotonic()
        guard = self._settings.guard
        storage, epoch, unclean = self._claim.acquire(op, force_epoch)
        reached("lease-taken")
        kill_footer = op == "unpause" and not self._settings.read_only
        try:
            self._load(storage, epoch, unclean=unclean, kill_footer=kill_footer, exclusive=guard)
        except (VhdtoolError, OSError) as error:
            released = self._claim.lease.release()
            self._settings.emit("refused", op=op, reason=str(error), released=released)
            if isinstance(error, UncleanImage):
                raise ActivationRefused(str(error)) from error
            raise
        self._claim.held = guard
        fields = {"began_mono": began, **self._times} | ({"implicit": True} if implicit else {})
        self._settings.emit(event, epoch=epoch, lease=guard, **fields)

    def open_without_lease(self, op: str, event: str, **extra: Any) -> None:
        """Reads the metadata without the lease."""
        storage, epoch = self._claim.open_without_lease(op)
        self._load(storage, epoch, unclean=True, kill_footer=False)
        self._settings.emit(event, epoch=epoch, **self._times, **extra)

    def _load(
        self,
        storage: Storage,
        epoch: int,
        unclean: bool,
        kill_footer: bool,
        exclusive: bool = False,
    ) -> None:
        self._times = {"read_mono": monotonic()}
        at, guard = self._claim.attached, self._settings.guard
        try:
            image = open_disk(
                storage,
                str(at.path),
                kind=at.kind,
                exclusive=exclusive,
                unclean=unclean,
                policy=None if guard else Tapdisk2(kill_footer, not on_nfs(at.path)),
                whole=True,
                hooks=Hooks(self._claim.check, self._allocated, reached),
            )
        except BaseException:
            storage.close()
            raise
        try:
            if image.size != self.size:
                raise StateError(
                    f"{at.path}: the disk has {size_text(image.size)}, "
                    f"it was attached with {size_text(self.size)}"
                )
            if self.image_filter is not None:
                image = self.image_filter(image)
        except BaseException:
            image.abandon()
            raise
        self.image, self._claim.storage = image, storage
        self._claim.epoch = epoch
        self.reported = frozenset({"flush"})

    def _allocated(self, block: int, sector: int) -> None:
        self.allocations += 1
        self._settings.emit("allocated", epoch=self._claim.epoch, block=block, sector=sector)

    def drop(self, op: str) -> None:
        """Abandons an image that was read without the lease."""
        if self.image is not None:
            log.info("%s: the image read at epoch %s is dropped", op, self._claim.epoch)
            self.image.abandon()
            self.image, self._claim.epoch = None, None

    def end(self, event: str, give_up: bool = False) -> None:
        """Closes the image, releases the lease, and emits when metadata was last written.

        A standby and a fenced disk write nothing. Where the footer cannot be written the image
        stays open and the lease ours, unless we `give_up`.
        """
        fields: dict[str, Any] = {"ended": self._claim.epoch, "wrote_footer": False}
        fields["began_mono"] = monotonic()
        failure: Exception | None = None
        image = self.image
        if image is not None:
            try:
                if self._may_write():
                    fields["wrote_footer"] = image.finish()
            except (LeaseLost, SplitBrain) as error:
                self._claim.fence(error)
                failure = error
            except (VhdtoolError, OSError) as error:
                if not give_up:
                    raise
                failure = error
            fields["last_metadata_mono"] = image.last_metadata
            fields["truncated_to"] = image.truncated_to
            self.image = None
            image.abandon()
            reached("image-closed")
        if self._reopens:
            fields["reopens"] = self._reopens
        if (epoch := self._claim.release()) is not None:
            fields["epoch"] = epoch
        self._reopens = 0
        reached("lease-released")
        self._settings.emit(event, **fields)
        if failure is not None:
            raise failure

    def _may_write(self) -> bool:
        fenced = self._states.current is State.FENCED
        return not fenced and (self._claim.held or not self._settings.guard)

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
        self._claim.check_if_due()
        if kind not in self.reported:
            self._report(kind)
        return image

    def _report(self, kind: str) -> None:
        """Emits the first request, and the first write, since the metadata was read."""
        with self._reporting:
            if not self.reported & {"read", "write"}:
                self._settings.emit("first-request", epoch=self._claim.epoch, request=kind)
            if kind == "write" and kind not in self.reported:
                self._settings.emit("first-write", epoch=self._claim.epoch)
            self.reported |= {kind}

    def reopen(self, mode: ReopenMode) -> None:
        """Closes and reopens the image before a request; only the first time emits an event.

        Raises OSError (EIO) when the lease or the image cannot be had.
        """
        if self._states.current is State.FENCED:
            raise OSError(EIO, "the disk is not open")
        try:
            if self._settings.guard and not self._claim.held:
                self._states.require("first request")
                self.drop("reopen")
                self.open_with_lease("request", "activated", implicit=True)
                self._states.change("first request")
            elif self._reopens == 0 and not self._settings.guard:
                self._close()
                self.open_without_lease("reopen", "opened", implicit=True, mode=mode)
            else:
                # Later cycles keep epoch and lease: the record would be nothing but them.
                epoch, reported, times = self._claim.epoch, self.reported, self._times
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
        old, settings = self._claim.storage, self._settings
        if old is None or not (settings.guard and old.holds_lock) or settings.read_only:
            self._close()
            return self._claim.reopen_storage()
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
