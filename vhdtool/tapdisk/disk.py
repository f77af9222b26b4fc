"""A disk of the shim: its states, and the rules by which they change.

    detached -> attached -> standby -> active <-> paused;  fenced is left by deactivate or detach

attached: path and size known, nothing read; requests get an error at once. A source that was
deactivated for a switch queues them instead, until the migration is over.
standby: opened without the lease; serves nothing. active: serves. paused: requests wait.
With the guard off an open disk serves at once, as tapdisk2 does, and every open, activation and
release is still appended to the epoch record, so that an oracle has something to judge.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vhdtool.errors import ActivationRefused, StateError, UsageError, VhdtoolError
from vhdtool.image.disk.open import KINDS, QCOW2, VHD
from vhdtool.leases.location import record_of
from vhdtool.storage.open import is_lun
from vhdtool.storage.paths import persistent_path
from vhdtool.tapdisk.router import Serving
from vhdtool.tapdisk.session import Settings

__all__ = ["Settings", "TapDisk"]

REQUESTS = ("read", "write", "other")
MODES = ("plain", "each", "first")


class TapDisk(Serving):
    """One disk. Operations come from the control socket, one at a time; requests from NBD."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._op = threading.RLock()

    # operations

    def promise(self, size: int) -> None:
        """The size, for a hypervisor that connects before the disk is attached."""
        with self._op:
            self._expect("export", "detached")
            self.size = _checked_size(size)

    def attach(self, path: Path, size: int, kind: str = VHD, record: Path | None = None) -> None:
        """Path, size and kind of image are given by the caller; nothing is read.

        `record`: the epoch record, by default beside the image, which a LUN does not have.
        """
        with self._op:
            self._expect("attach", "detached")
            if kind not in KINDS:
                raise UsageError(f"attach: format {kind!r} is none of {', '.join(KINDS)}")
            if self.size not in (0, _checked_size(size)):
                raise StateError(f"attach: a size of {self.size} bytes was promised, not {size}")
            if is_lun(path) and (record is None or kind == QCOW2):
                raise UsageError(f"{path}: on a LUN, the epoch record needs a file; no qcow2 there")
            self._name(path, kind, record)
            self.size = size
            self.state = "attached"
            self.settings.emit("attached", path=str(path), size=size)

    def _name(self, path: Path, kind: str, record: Path | None) -> None:
        """What the image is called, and whose lease it has."""
        self._record = None if is_lun(path) else record_of(path, record)
        place = self._record or record
        assert place is not None
        self._lease = self.settings.open_lease(place)
        self.path, self.kind, self._real = path, kind, persistent_path(path)

    def open(self, mode: str = "plain") -> None:
        """Reads footer, header and BAT. `mode` says which requests reopen the image first."""
        with self._op:
            self._expect("open", "attached")
            if mode not in MODES:
                raise StateError(f"open: mode {mode!r} is none of {', '.join(MODES)}")
            if mode == "each" and self.kind == QCOW2:
                raise UsageError("open: a reopen for each request is not done for qcow2 images")
            self._read("open", "opened", mode=mode)
            self._mode = mode
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
            # An implicit standby lets requests in: they wait while its early read goes.
            with self._gated("hold"):
                self._expect("activate", "attached", "standby")
                self._drop_read("activate")
                self._take("activate", "activated", force_epoch)
                self._mode = "plain"
                self.state = "active"
            self._gate.set("serve")

    def pause(self) -> None:
        """Requests wait; the image is closed and the lease, if any, given up."""
        with self._op:
            self._expect("pause", "active", "standby")
            with self._gated("hold"):
                self._expect("pause", "active", "standby")
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

    def exchange(self, path: Path, kind: str = VHD) -> None:
        """A paused disk goes on with another file of the same size: a snapshot's child.

        Raises what opening it raises; then the disk stays paused, with its old file.
        """
        with self._op:
            self._expect("exchange", "paused")
            old = self.path, self.kind, self._real, self._record, self._lease
            self._name(path, kind, None)
            try:
                self.unpause()
            except BaseException:
                if self._lease is not None:
                    self._lease.close()
                self.path, self.kind, self._real, self._record, self._lease = old
                raise
            if old[-1] is not None:
                old[-1].close()

    def deactivate(self, queue: bool = False) -> None:
        """Closes the image, then gives the lease up. With `queue` requests wait, not fail.

        When the footer cannot be written (no space) nothing has changed: it may be tried again.
        """
        with self._op:
            self._expect("deactivate", "active", "standby", "paused", "fenced")
            with self._gated("hold" if queue else "refuse"):
                self._end_read("deactivated")
                self.state = "attached"

    def stop_queueing(self) -> None:
        """The switch is over: requests that were queued fail now."""
        with self._op:
            self._expect("stop-queueing", "attached")
            self._gate.set("refuse")

    def detach(self, disconnect: Callable[[], None] = lambda: None) -> None:
        """Forgets the disk; whatever is still open is closed first.

        `disconnect` ends the clients: while the image closes their requests wait, so that a
        hypervisor sees a connection that ended, which it can mend, and not an I/O error.
        Raises what kept the image from being closed with a footer; it is detached all the same.
        """
        with self._op:
            try:
                if self.state in ("active", "standby", "paused", "fenced"):
                    self._gate.set("refuse" if self.state == "fenced" else "hold")
                    self._end_read("closed", give_up=True)
            finally:
                disconnect()
                self._forget()

    def _forget(self) -> None:
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        self.size = 0
        if self.state != "detached":
            self.state = "detached"
            self._gate.set("refuse", drain=False)
            self.settings.emit("detached")

    @contextmanager
    def _gated(self, mode: str) -> Iterator[None]:
        """Requests meet `mode` while, and after, an operation; one that fails changes nothing."""
        before = self._gate.set(mode)
        try:
            yield
        except BaseException:
            if self.state != "fenced":
                self._gate.set(before, drain=False)
            raise

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
            self._check_lease()
        elif (holder := self._lease.holder()) is not None and not holder.is_gone():
            raise ActivationRefused(f"{self.path}: the lease is held by {holder}")

    def probe(self) -> None:
        """One read of the first sector, as a hypervisor does when it attaches a disk."""
        if self.waits():
            raise StateError(f"probe: the disk is {self.state}, and requests wait now")
        try:
            self.read(0, 512)
        except (OSError, VhdtoolError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            reason = f"the probe's read failed: {why}"
            self.settings.emit("refused", op="probe", reason=reason)
            raise ActivationRefused(f"{self.path}: {reason}") from error

    def status(self) -> dict[str, Any]:
        """What the disk is now; waits for no operation."""
        return {
            "state": self.state,
            "path": str(self.path),
            "size": self.size,
            "mode": self._mode,
            "guard": self.settings.guard,
            "lease": self._holds_lease,
            "epoch": self._read_epoch,
            "read_bytes": self._moved(0),
            "written_bytes": self._moved(1),
            "requests": {name: self._moved(2 + n) for n, name in enumerate(REQUESTS)},
            "allocations": self.allocations,
            "clients": len(self._tallies),
            "waiting": self._gate.waiting,
        }

    def _expect(self, op: str, *states: str) -> None:
        if self.state not in states:
            wanted = " or ".join(states)
            raise StateError(f"{op}: the disk is {self.state}, must be {wanted}")


def _checked_size(size: int) -> int:
    if not 0 < size < 1 << 63 or size % 512:
        raise UsageError(f"a disk of {size} bytes: must be a positive multiple of 512")
    return size
