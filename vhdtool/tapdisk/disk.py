"""A disk of the shim: its states, and the rules by which they change.

    detached -> attached -> standby -> active <-> paused;  fenced is left only by detach

attached: path and size known, nothing read; requests get an error at once. A source that was
deactivated for a switch queues them instead, until the migration is over.
standby: opened without the lease; serves nothing. active: serves. paused: requests wait.
With the guard off an open disk serves at once, as tapdisk2 does, and every open, activation and
release is still appended to the epoch record, so that an oracle has something to judge.
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from vhdtool.errors import (
    ActivationRefused,
    LeaseLost,
    SplitBrain,
    StateError,
    UncleanImage,
    VhdtoolError,
)
from vhdtool.image.disk import DynamicDisk, Hooks
from vhdtool.storage import Storage
from vhdtool.tapdisk.lease import Lease

log = logging.getLogger("disk")
T = TypeVar("T")
Emit = Callable[..., None]
"""emit(event, **fields): one event of the disk."""
MODES = ("plain", "each", "first")
DRAIN_PATIENCE = 30.0
"""Seconds that a pause or deactivation waits for requests in flight."""


@dataclass(frozen=True)
class Settings:
    """How a shim behaves; fixed for the life of its process."""

    guard: bool
    open_storage: Callable[[Path], Storage]
    open_lease: Callable[[Path], Lease]
    emit: Emit


class Gate:
    """Lets requests through, holds them, or turns them away."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mode = "refuse"
        self._inside = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        with self._changed:
            while self._mode == "hold":
                self._changed.wait()
            if self._mode == "refuse":
                raise OSError(errno.EIO, "the disk serves no requests now")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def set(self, mode: str, drain: bool = True) -> None:
        """Changes the mode; with `drain` returns only when no request is inside any more.

        Raises StateError when requests do not end in time; the mode is set all the same.
        """
        with self._changed:
            self._mode = mode
            self._changed.notify_all()
            if drain and not self._changed.wait_for(lambda: not self._inside, DRAIN_PATIENCE):
                raise StateError(f"{self._inside} requests did not end in {DRAIN_PATIENCE:.0f} s")


class TapDisk:
    """One disk. Operations come from the control socket, one at a time; requests from NBD."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = "detached"
        self.path = Path()
        self.size = 0
        self._gate = Gate()
        self._op = threading.RLock()
        self._reopening = threading.Lock()
        self._lease: Lease | None = None
        self._image: DynamicDisk | None = None
        self._read_epoch: int | None = None
        self._mode = "plain"
        self._holds_lease = False
        self._seen: set[str] = set()
        self._reopens = 0
        self._since_read: dict[str, Any] = {}

    # operations

    def promise(self, size: int) -> None:
        """The size, for a hypervisor that connects before the disk is attached."""
        with self._op:
            self._expect("export", "detached")
            self.size = size

    def attach(self, path: Path, size: int) -> None:
        """Path and size are given by the caller; nothing is read."""
        with self._op:
            self._expect("attach", "detached")
            self.path, self.size = path, size
            self._lease = self.settings.open_lease(path.with_name(path.name + ".lease"))
            self.state = "attached"
            self.settings.emit("attached", path=str(path), size=size)

    def open(self, mode: str = "plain") -> None:
        """Reads footer, header and BAT. `mode` says which requests reopen the image first."""
        with self._op:
            self._expect("open", "attached")
            if mode not in MODES:
                raise StateError(f"open: mode {mode!r} is none of {', '.join(MODES)}")
            self._mode = mode
            self._read("open", "opened", mode=mode)
            if self.settings.guard:
                # A standby: with an implicit mode the first request takes the lease.
                self.state = "standby"
                self._gate.set("refuse" if mode == "plain" else "serve")
            else:
                self.state = "active"
                self._gate.set("serve")

    def activate(self, force_epoch: int | None = None) -> None:
        """Takes the lease at a new epoch, then reads the metadata, then serves."""
        with self._op:
            self._expect("activate", "attached", "standby")
            self._drop_read("activate")
            self._mode = "plain"
            self._take("activate", "activated", force_epoch)
            self.state = "active"
            self._gate.set("serve")

    def pause(self) -> None:
        """Requests wait; the image is closed and the lease, if any, given up."""
        with self._op:
            self._expect("pause", "active", "standby")
            self._gate.set("hold")
            self._end_read("paused")
            self.state = "paused"

    def unpause(self) -> None:
        """Reopens. Guard on: takes the lease first. Guard off: kills the footer unseen."""
        with self._op:
            self._expect("unpause", "paused")
            self._take("unpause", "unpaused", None)
            self._mode = "plain"
            self.state = "active"
            self._gate.set("serve")

    def deactivate(self, queue: bool = False) -> None:
        """Closes the image, then gives the lease up. With `queue` requests wait, not fail."""
        with self._op:
            self._expect("deactivate", "active", "standby", "paused", "fenced")
            self._gate.set("hold" if queue else "refuse")
            self._end_read("deactivated")
            self.state = "attached"

    def stop_queueing(self) -> None:
        """The switch is over: requests that were queued fail now."""
        with self._op:
            self._expect("stop-queueing", "attached")
            self._gate.set("refuse")

    def detach(self) -> None:
        """Forgets the disk; whatever is still open is closed first."""
        with self._op:
            if self.state in ("active", "standby", "paused", "fenced"):
                self._gate.set("refuse")
                self._end_read("closed")
            if self._lease is not None:
                self._lease.close()
                self._lease = None
            if self.state != "detached":
                self.state = "detached"
                self._gate.set("refuse")
                self.settings.emit("detached")

    def may_serve(self) -> None:
        """Raises ActivationRefused unless a request would be served now; changes nothing."""
        with self._op:
            try:
                self._may_serve()
            except VhdtoolError as error:
                self.settings.emit("refused", op="may-serve", reason=str(error))
                raise

    def _may_serve(self) -> None:
        implicit = self.state == "standby" and self._mode != "plain"
        if self.state != "active" and not implicit:
            raise ActivationRefused(f"{self.path}: {self.state}, so no request would be served")
        if not self.settings.guard or self._lease is None:
            return
        if self._holds_lease:
            self._lease.check()
        elif (holder := self._lease.holder()) is not None and not holder.is_gone():
            raise ActivationRefused(f"{self.path}: the lease is held by {holder}")

    def probe(self) -> None:
        """One read of the first sector, as a hypervisor does when it attaches a disk."""
        try:
            self.read(0, 512)
        except OSError as error:
            reason = f"the probe's read failed: {error.strerror}"
            self.settings.emit("refused", op="probe", reason=reason)
            raise ActivationRefused(f"{self.path}: {reason}") from error

    def status(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "path": str(self.path),
            "size": self.size,
            "mode": self._mode,
            "guard": self.settings.guard,
            "lease": self._holds_lease,
            "epoch": self._read_epoch,
        }

    # reading the metadata, and ending that

    def _expect(self, op: str, *states: str) -> None:
        if self.state not in states:
            wanted = " or ".join(states)
            raise StateError(f"{op}: the disk is {self.state}, must be {wanted}")

    def _take(self, op: str, event: str, force_epoch: int | None, implicit: bool = False) -> None:
        """The lease, then the metadata. On a refusal everything is as before."""
        assert self._lease is not None
        began = monotonic()
        guard = self.settings.guard
        extra: dict[str, Any] = {"implicit": True} if implicit else {}
        try:
            if guard:
                holder = self._lease.holder()
                epoch = self._lease.acquire(force_epoch)
                # A holder that is proven gone, or forced, may have left no footer.
                unclean = holder is not None
            else:
                epoch, unclean = self._lease.note(op), True
        except VhdtoolError as error:
            self.settings.emit("refused", op=op, reason=str(error))
            raise
        try:
            kill = op == "unpause" and not guard
            self._load(epoch, unclean=unclean, kill_footer=kill)
        except BaseException as error:
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
        epoch = self._lease.note(op)
        self._load(epoch, unclean=True, kill_footer=False)
        self.settings.emit(event, epoch=epoch, **self._since_read, **extra)

    def _load(self, epoch: int, unclean: bool, kill_footer: bool) -> None:
        self._since_read = {"read_mono": monotonic()}
        lease, guard = self._lease, self.settings.guard
        assert lease is not None
        storage = self.settings.open_storage(self.path)
        try:
            self._image = DynamicDisk(
                storage,
                faithful=not guard,
                unclean=unclean,
                kill_footer=kill_footer,
                hooks=Hooks(may_write_metadata=lease.check, allocated=self._allocated),
            )
        except BaseException:
            storage.close()
            raise
        if self._image.size != self.size:
            self._image.abandon()
            self._image = None
            raise StateError(f"{self.path}: the disk has another size than it was attached with")
        self._read_epoch = epoch
        self._seen = set()

    def _allocated(self, block: int, sector: int) -> None:
        self.settings.emit("allocated", epoch=self._read_epoch, block=block, sector=sector)

    def _drop_read(self, op: str) -> None:
        """A standby's early read is thrown away before the one that counts."""
        if self._image is not None:
            log.info("%s: the early read of epoch %s is dropped", op, self._read_epoch)
            self._image.abandon()
            self._image, self._read_epoch = None, None

    def _end_read(self, event: str) -> None:
        """Closes what is open, gives the lease up, and tells when the last metadata was written.

        A standby never writes, a fenced disk never again: both are closed untouched.
        """
        fields: dict[str, Any] = {"ended": self._read_epoch, "wrote_footer": False}
        fields["began_mono"] = monotonic()
        image, self._image = self._image, None
        try:
            if image is not None:
                untouched = self.state == "fenced" or (
                    self.settings.guard and not self._holds_lease
                )
                if untouched:
                    image.abandon()
                else:
                    fields["wrote_footer"] = image.close()
        except (LeaseLost, SplitBrain) as error:
            self.state = "fenced"
            self.settings.emit("fenced", epoch=self._read_epoch, reason=str(error))
            raise
        finally:
            if image is not None:
                fields["last_metadata_mono"] = image.last_metadata
                fields["truncated_to"] = image.truncated_to
            if self._reopens:
                fields["reopens"] = self._reopens
            self._finish(event, fields)

    def _finish(self, event: str, fields: dict[str, Any]) -> None:
        if self._lease is not None and (self._read_epoch is not None or self._holds_lease):
            fields["epoch"] = self._lease.release()
        self._holds_lease = False
        self._read_epoch = None
        self._reopens = 0
        self.settings.emit(event, **fields)

    # requests

    def export_size(self) -> int:
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        return self._request("read", lambda image: image.read(offset, length))

    def write(self, offset: int, data: memoryview) -> None:
        self._request("write", lambda image: image.write(offset, data))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._request("write", lambda image: image.write_zeroes(offset, length))

    def flush(self) -> None:
        self._request("flush", lambda image: image.flush())

    def _request(self, kind: str, serve: Callable[[DynamicDisk], T]) -> T:
        with self._gate.request():
            try:
                if self._mode == "plain":
                    return self._serve(kind, serve)
                with self._reopening:
                    if self._mode != "plain":
                        self._reopen()
                    return self._serve(kind, serve)
            except (LeaseLost, SplitBrain) as error:
                self._fence(error)
                raise OSError(errno.EIO, str(error)) from error

    def _serve(self, kind: str, serve: Callable[[DynamicDisk], T]) -> T:
        image = self._image
        if image is None:
            raise OSError(errno.EIO, "the disk is not open")
        if kind != "flush" and not {kind, "request"} <= self._seen:
            self._first(kind)
        return serve(image)

    def _first(self, kind: str) -> None:
        """Each metadata read tells once that it serves, and once that it is written on."""
        if "request" not in self._seen:
            self.settings.emit("first-request", epoch=self._read_epoch, request=kind)
        if kind == "write" and "write" not in self._seen:
            self.settings.emit("first-write", epoch=self._read_epoch)
        self._seen |= {kind, "request"}

    def _reopen(self) -> None:
        """Cure C: close and open before the request. The first one is an event of its own."""
        if self.settings.guard and not self._holds_lease:
            self._drop_read("reopen")
            try:
                self._take("request", "activated", None, implicit=True)
            except VhdtoolError as error:
                raise OSError(errno.EIO, str(error)) from error
            self.state = "active"
        elif self._reopens == 0 and not self.settings.guard:
            assert self._image is not None
            self._close_for_reopen()
            self._read("reopen", "opened", implicit=True, mode=self._mode)
        else:
            # Later cycles keep epoch and lease: the record would be nothing but them.
            epoch, seen, stamp = self._read_epoch, self._seen, self._since_read
            assert epoch is not None
            self._close_for_reopen()
            self._load(epoch, unclean=True, kill_footer=False)
            self._seen, self._since_read = seen, stamp
        self._reopens += 1
        if self._mode == "first":
            self._mode = "plain"

    def _close_for_reopen(self) -> None:
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def _fence(self, error: VhdtoolError) -> None:
        """Write nothing more, stay up, serve errors; the operator has to look."""
        log.error("fenced: %s", error)
        self.state = "fenced"
        self._gate.set("refuse", drain=False)
        self.settings.emit("fenced", epoch=self._read_epoch, reason=str(error))
