"""A disk of the shim: the operations that an operator or a toolstack asks for.

`states.TRANSITIONS` says which operation is possible when. A source that was deactivated for a
switch holds requests, instead of refusing them, until the migration is over. With the guard off an
open disk serves at once, as tapdisk2 does, and every open, activation and release is still
appended to the epoch record, so that an oracle has something to judge.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vhdtool.errors import ActivationRefused, StateError, UsageError, VhdtoolError
from vhdtool.image.disk.open import KINDS, QCOW2, VHD
from vhdtool.leases.location import record_of
from vhdtool.storage.paths import is_lun, persistent_path
from vhdtool.tapdisk.access import Settings
from vhdtool.tapdisk.claim import Attachment, DiskClaim
from vhdtool.tapdisk.gate import Gate
from vhdtool.tapdisk.router import RequestRouter
from vhdtool.tapdisk.session import ImageSession
from vhdtool.tapdisk.states import GateMode, Operation, ReopenMode, State, StateTable
from vhdtool.vhd.units import size_text


class TapDisk:
    """One disk. Operations come one at a time; requests come to `router` from the NBD server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._states = StateTable(settings.guard)
        self._gate = Gate(settings.fast_path_gate())
        self.claim = DiskClaim(settings, self._states, self._gate)
        self.session = ImageSession(settings, self._states, self.claim)
        self.router = RequestRouter(settings, self.session, self.claim, self._gate)
        self._op = threading.RLock()

    @property
    def state(self) -> State:
        return self._states.current

    @property
    def size(self) -> int:
        """Bytes; 0 while it is unknown."""
        return self.session.size

    @property
    def path(self) -> Path:
        """The image; after `detach` the last one."""
        attachment = self.claim.attachment
        return Path() if attachment is None else attachment.path

    @property
    def kind(self) -> str:
        """The image's format, one of KINDS."""
        attachment = self.claim.attachment
        return VHD if attachment is None else attachment.kind

    # operations

    def promise(self, size: int) -> None:
        """Sets the size, for a hypervisor that connects before the disk is attached."""
        with self._op:
            self._states.require("export")
            self.session.size = _checked_size(size)

    def attach(self, path: Path, size: int, kind: str = VHD, record: Path | None = None) -> None:
        """Names the image; reads nothing.

        `record`: the epoch record, by default beside the image, which a LUN does not have.
        """
        with self._op:
            self._states.require("attach")
            if kind not in KINDS:
                raise UsageError(f"attach: format {kind!r} is none of {', '.join(KINDS)}")
            if self.size not in (0, _checked_size(size)):
                raise StateError(
                    f"attach: a size of {size_text(self.size)} was promised, not {size_text(size)}"
                )
            if is_lun(path) and (record is None or kind == QCOW2):
                raise UsageError(f"{path}: on a LUN, the epoch record needs a file; no qcow2 there")
            self.claim.attachment = self._attachment(path, kind, record)
            self.session.size = size
            self._states.change("attach")
            self.settings.emit("attached", path=str(path), size=size)

    def _attachment(self, path: Path, kind: str, record: Path | None) -> Attachment:
        found = None if is_lun(path) else record_of(path, record)
        location = found or record
        assert location is not None
        lease = self.settings.open_lease(location)
        return Attachment(path, kind, persistent_path(path), found, lease)

    def open(self, mode: str = "plain") -> None:
        """Reads footer, header and BAT. `mode`: which requests reopen the image first."""
        with self._op:
            self._states.require("open")
            try:
                reopen = ReopenMode(mode)
            except ValueError:
                known = ", ".join(ReopenMode)
                raise StateError(f"open: mode {mode!r} is none of {known}") from None
            if reopen is ReopenMode.EACH and self.kind == QCOW2:
                raise UsageError("open: a reopen for each request is not done for qcow2 images")
            self.session.open_without_lease("open", "opened", mode=reopen)
            self.router.reopen_mode = reopen
            self._states.change("open")
            # In the other modes the first request takes the lease.
            serves = self.state is State.ACTIVE or reopen is not ReopenMode.PLAIN
            self._gate.set(GateMode.SERVE if serves else GateMode.REFUSE)

    def activate(self, force_epoch: int | None = None) -> None:
        """Takes the lease at a new epoch, reads the metadata, then serves."""
        with self._op:
            self._states.require("activate")
            # A standby that admits requests holds them while its image is replaced.
            with self._gated(GateMode.HOLD):
                self._states.require("activate")
                self.session.drop("activate")
                self.session.open_with_lease("activate", "activated", force_epoch)
                self._serve("activate")

    def start(self, force_epoch: int | None = None) -> None:
        """Activates an attached disk, or opens it with the guard off; a failure detaches it."""
        try:
            if self.settings.guard:
                self.activate(force_epoch)
            else:
                self.open()
        except BaseException:
            self.detach()
            raise

    def pause(self) -> None:
        """Holds requests, closes the image, and releases the lease, if there is one."""
        with self._op:
            self._states.require("pause")
            with self._gated(GateMode.HOLD):
                self._states.require("pause")
                self.session.end("paused")
                self._states.change("pause")

    def unpause(self) -> None:
        """Reopens. Guard on: takes the lease first. Guard off: overwrites the footer unread."""
        with self._op:
            self._states.require("unpause")
            self.session.open_with_lease("unpause", "unpaused")
            self._serve("unpause")

    def exchange(self, path: Path, kind: str = VHD) -> None:
        """Unpauses with another image of the same size, such as a snapshot's child.

        Raises what opening it raises; then the disk stays paused, with its old image.
        """
        with self._op:
            self._states.require("exchange")
            claim, old = self.claim, self.claim.attachment
            assert old is not None
            claim.attachment = self._attachment(path, kind, None)
            try:
                self.unpause()
            except BaseException:
                claim.lease.close()
                claim.attachment = old
                raise
            old.lease.close()

    def deactivate(self, queue: bool = False) -> None:
        """Closes the image, then releases the lease. With `queue` requests wait, not fail.

        When the footer cannot be written (no space) nothing has changed: it may be tried again.
        """
        with self._op:
            self._states.require("deactivate")
            with self._gated(GateMode.HOLD if queue else GateMode.REFUSE):
                self.session.end("deactivated")
                self._states.change("deactivate")

    def stop_queueing(self) -> None:
        """Refuses the requests that `deactivate` queued: the migration is over."""
        with self._op:
            self._states.require("stop-queueing")
            self._gate.set(GateMode.REFUSE)

    def detach(self, disconnect: Callable[[], None] = lambda: None) -> None:
        """Forgets the disk; an open image is closed first.

        `disconnect` ends the clients: while the image closes their requests wait, so that a
        hypervisor sees a connection that ended, which it can mend, and not an I/O error.
        Raises what kept the image from being closed with a footer; it is detached all the same.
        """
        with self._op:
            try:
                if self._states.allows("deactivate"):
                    fenced = self.state is State.FENCED
                    self._gate.set(GateMode.REFUSE if fenced else GateMode.HOLD)
                    self.session.end("closed", give_up=True)
            finally:
                disconnect()
                self._forget()

    def _forget(self) -> None:
        self.session.size = 0
        if self.state is not State.DETACHED:
            self.claim.close()
            self._states.change("detach")
            self._gate.set(GateMode.REFUSE, drain=False)
            self.settings.emit("detached")

    def _serve(self, operation: Operation) -> None:
        self.router.reopen_mode = ReopenMode.PLAIN
        self._states.change(operation)
        self._gate.set(GateMode.SERVE)

    @contextmanager
    def _gated(self, mode: GateMode) -> Iterator[None]:
        """Sets the gate for an operation; one that fails leaves the gate as it was."""
        before = self._gate.set(mode)
        try:
            yield
        except BaseException:
            if self.state is not State.FENCED:
                self._gate.set(before, drain=False)
            raise

    # questions

    def may_serve(self) -> None:
        """Raises ActivationRefused unless a request would be served now; changes nothing."""
        with self._op:
            try:
                self._require_served()
            except VhdtoolError as error:
                self.settings.emit("refused", op="may-serve", reason=str(error))
                raise

    def _require_served(self) -> None:
        claim = self.claim
        implicit = self.state is State.STANDBY and self.router.reopen_mode is not ReopenMode.PLAIN
        if self.state is not State.ACTIVE and not implicit:
            raise ActivationRefused(f"{self.path}: {self.state}, so no request would be served")
        if not self.settings.guard:
            return
        if claim.held:
            claim.check()
        elif (holder := claim.lease.holder()) is not None and not holder.owner.is_gone():
            raise ActivationRefused(f"{self.path}: the lease is held by {holder.owner}")

    def probe(self) -> None:
        """Reads the first sector, as a hypervisor does when it attaches a disk."""
        if self.router.waits():
            raise StateError(f"probe: the disk is {self.state}, and requests wait now")
        try:
            self.router.read(0, 512)
        except (OSError, VhdtoolError) as error:
            why = error if isinstance(error, VhdtoolError) else error.strerror
            reason = f"the probe's read failed: {why}"
            self.settings.emit("refused", op="probe", reason=reason)
            raise ActivationRefused(f"{self.path}: {reason}") from error

    def status(self) -> dict[str, Any]:
        """Returns what the disk is now; waits for no operation."""
        claim, router = self.claim, self.router
        return {
            "state": self.state,
            "path": str(self.path),
            "size": self.size,
            "mode": router.reopen_mode,
            "guard": self.settings.guard,
            "read_only": self.settings.read_only,
            "lease": claim.held,
            "epoch": claim.epoch,
            **router.counters(),
            "allocations": self.session.allocations,
            "clients": router.clients,
            "waiting": self._gate.waiting,
        }


def _checked_size(size: int) -> int:
    if not 0 < size < 1 << 63 or size % 512:
        raise UsageError(f"a disk of {size_text(size)}: must be a positive multiple of 512")
    return size
