"""The operations of a VDI on this host: attach, activate, deactivate, detach and more.

An operation that is done already changes nothing and succeeds. Keys are written before the shim
acts and removed after it has, so a key may outlive what it says, and never the other way round.
"""

import contextlib
import os

from vhdtool.errors import ActivationRefused, StateError, VhdtoolError
from vhdtool.image.disk.open import disk_size, kind_of
from vhdtool.image.edit.modify import modify_parent
from vhdtool.leases.claim import writer_of
from vhdtool.leases.lease import open_lease
from vhdtool.leases.location import existing_record
from vhdtool.leases.owner import Owner
from vhdtool.tapdisk.failpoint import reached
from vhdtool.vdi.keys import ACTIVATING, PAUSED, READ_WRITE, RELINKING, Key, Keys
from vhdtool.vdi.local import LocalVdi, Status, mode_of
from vhdtool.vdi.rules import conflicts, delays, overruled, refusal
from vhdtool.vdi.shim import BackendError, ShimConnection, connected, end, start

OPEN = ("active", "standby", "paused", "fenced")
"""States in which a shim has the image, or had it and lost it."""


class Vdi(LocalVdi):
    """The operations. Each returns the shim's status, and raises VhdtoolError."""

    def attach(
        self,
        size: int | None = None,
        kind: str | None = None,
        read_only: bool = False,
    ) -> Status:
        """Starts a shim that knows the image and reads nothing. `size` in bytes."""
        with self.alone() as shim:
            status = None if shim is None else shim.call("status")
            if status is not None and status["state"] != "detached":
                if self.own_shim and status["read_only"] != read_only:
                    raise StateError(
                        f"{self.image}: is attached here for {mode_of(status)}; detach it first"
                    )
                return status
            self.require_image()
            kind = kind or kind_of(self.image)
            size = size or disk_size(self.image, kind)
            if self.own_shim:
                if shim is not None:
                    end(shim, self.sockets)
                self.sockets.remove()
                start(self.sockets, self.host, read_only)
            with connected(self.control, self.host) as shim:
                shim = self.started(shim)
                try:
                    return shim.call("attach", path=self.image, size=size, format=kind)
                except VhdtoolError:
                    if self.own_shim:
                        end(shim, self.sockets)
                    raise

    def activate(self, force: int | None = None) -> Status:
        """Takes the keys, then the lease, and serves. Refused while another host is active.

        `force`: the number of a key, or else the epoch of the lease, whose host is dead.
        """
        epoch = None if force is None else self._forced(force)
        obstacle: Key | None = None
        for _ in self.waiting():
            with self.alone() as found:
                shim = self.attached(found)
                status = shim.call("status")
                if status["state"] == "fenced":
                    raise StateError(f"{self.image}: is fenced here; deactivate it first")
                obstacle = self._take_keys(shim, status)
                if obstacle is None:
                    return self._open(shim, status, epoch)
        assert obstacle is not None
        raise refusal(self.image, obstacle, self.patience)

    def _forced(self, force: int) -> int | None:
        """Removes the keys that are overruled, if one is in the way; returns the lease's epoch."""
        with self.alone() as found:
            shim = self.attached(found)
            mode = mode_of(shim.call("status"))
            with self.keys() as keys:
                in_the_way = [*conflicts(keys, self.key_name, mode, shim.owner), *delays(keys)]
                if not in_the_way:
                    return force
                dead, epoch = self._overrule(keys, in_the_way, force)
            self._note_removed(dead)
            return epoch

    def _take_keys(self, shim: ShimConnection, status: Status) -> Key | None:
        """Takes both keys, in one change; returns the key to wait for, if there is one."""
        with self.keys() as keys:
            mine = keys.get(self.key_name)
            if status["state"] == "active" and mine is not None and mine.owner == shim.owner:
                return None
            mode = mode_of(status)
            for key in conflicts(keys, self.key_name, mode, shim.owner):
                raise refusal(self.image, key)
            for key in delays(keys):
                return key
            keys.add(ACTIVATING, Owner.here(self.host))
            keys.add(self.key_name, shim.owner, mode)
        reached("vdi-activating")
        return None

    def _overrule(
        self, keys: Keys, in_the_way: list[Key], force: int
    ) -> tuple[list[Key], int | None]:
        """Removes the keys of a host that is dead by the operator's word.

        Returns them, and the epoch of that host's lease: the operator's word holds for it too.
        """
        dead = overruled(self.image, keys, in_the_way, force)
        if user := writer_of(self.image):
            raise ActivationRefused(f"{user}; --force {force} takes only what is free")
        keys.drop(*dead)
        record = existing_record(self.image)
        if record is None:
            return dead, None
        with contextlib.closing(open_lease(record, Owner.here(self.host))) as lease:
            holder = lease.holder()
        owners = [key.owner for key in dead]
        return dead, holder.epoch if holder is not None and holder.owner in owners else None

    def _note_removed(self, dead: list[Key]) -> None:
        for key in dead:
            self.note(f"{self.image}: removed by --force: {key}")

    def _open(self, shim: ShimConnection, status: Status, epoch: int | None) -> Status:
        """Lets the shim open the image; a refusal takes the keys back."""
        try:
            if status["state"] != "active":
                forced = {} if epoch is None else {"force": epoch}
                status = shim.call("activate", **forced)
            reached("vdi-activated")
        except BackendError:
            # What the shim has done is unknown. The keys name it, and are stale once it is gone.
            raise
        except VhdtoolError:
            self._drop_own(shim)
            raise
        except BaseException:
            # Interrupted while the shim may still open the image, which would then be served.
            self.note(f"{self.image}: interrupted; waits until its shim has closed it again")
            with connected(self.control, self.host) as again:
                if again is not None:
                    with contextlib.suppress(StateError):
                        again.call("deactivate")
                    self._drop_own(shim)
            raise
        with self.keys() as keys:
            key = keys.get(ACTIVATING)
            if key is not None and key.owner == Owner.here(self.host):
                keys.drop(key)
        return status

    def deactivate(self, queue: bool = False) -> Status:
        """Closes the image, releases the lease, and removes this host's key last.

        An image whose shim has died is opened again first, so that it is closed with its footer.
        `queue`: requests wait, and do not fail, until the next operation.
        """
        self._recover()
        paused: Key | None = None
        for _ in self.waiting():
            with self.alone() as shim:
                if shim is None:
                    self.require_image()
                    return {"state": "detached"}
                status = shim.call("status")
                paused = self.read_keys().get(PAUSED)
                if paused is None or paused.state == "gone" or status["state"] == "fenced":
                    return self._close(shim, status, queue)
        assert paused is not None
        raise refusal(self.image, paused, self.patience)

    def _recover(self) -> None:
        """Opens the image again where its shim has died and has not closed it."""
        with self.alone() as shim:
            crashed = self.crashed(shim)
        if crashed is not None:
            self.note(f"{self.image}: its shim (pid {crashed.owner.pid}) has died; recovering")
            self.attach()
            self.activate()

    def _close(self, shim: ShimConnection, status: Status, queue: bool) -> Status:
        if status["state"] in OPEN:
            status = shim.call("deactivate", queue=queue)
        reached("vdi-closed")
        self._drop_own(shim)
        return status

    def _drop_own(self, shim: ShimConnection) -> None:
        """Removes the keys of this shim and of this process."""
        mine = (shim.owner, Owner.here(self.host))
        if any(key.owner in mine for key in self.read_keys().values()):
            with self.keys() as keys:
                keys.drop(*[key for key in keys.values() if key.owner in mine])

    def detach(self) -> Status:
        """Forgets the image and ends its shim. Refused while it is active here."""
        with self.alone() as shim:
            if (crashed := self.crashed(shim)) is not None:
                raise StateError(
                    f"{self.image}: its shim (pid {crashed.owner.pid}) has died while it was "
                    "active; `vhdtool vdi deactivate` closes it, then detach it"
                )
            if shim is None:
                if not os.path.lexists(self.sockets.control):
                    self.require_image()
                self.sockets.remove()
                return {"state": "detached"}
            status = shim.call("status")
            if status["state"] in OPEN:
                raise StateError(
                    f"{self.image}: is {status['state']} here; `vhdtool vdi deactivate` it first"
                )
            # Also where the directory of the image is gone: nothing is open any more.
            with contextlib.suppress(VhdtoolError):
                self._drop_own(shim)
            if self.own_shim:
                end(shim, self.sockets)
                return {"state": "detached"}
            return shim.call("detach")

    def pause(self) -> Status:
        """Closes the image while requests wait, and keeps every host from activating it."""
        with self.alone() as found:
            shim = self.attached(found)
            status = shim.call("status")
            if status["state"] != "active" and status["state"] != "paused":
                raise StateError(f"{self.image}: is {status['state']} here; activate it first")
            with self.keys() as keys:
                self._require_no_other(keys, shim)
                if PAUSED not in keys:
                    keys.add(PAUSED, shim.owner)
            reached("vdi-paused")
            return self._paused(shim, status)

    def _paused(self, shim: ShimConnection, status: Status) -> Status:
        if status["state"] == "paused":
            return status
        try:
            return shim.call("pause")
        except VhdtoolError:
            with self.keys() as keys:
                keys.pop(PAUSED, None)
            raise

    def _require_no_other(self, keys: Keys, shim: ShimConnection) -> None:
        """Raises for a host that a pause would have to reach too, or that changes the image."""
        others = conflicts(keys, self.key_name, READ_WRITE, shim.owner)
        busy = [key for key in delays(keys) if key.name != PAUSED or key.owner != shim.owner]
        for key in [*others, *busy]:
            raise refusal(self.image, key)

    def unpause(self) -> Status:
        """Opens the image again; the requests go on. Removes `paused` last."""
        with self.alone() as found:
            shim = self.attached(found)
            status = shim.call("status")
            if status["state"] == "paused":
                status = shim.call("unpause")
            reached("vdi-unpaused")
            with self.keys() as keys:
                key = keys.get(PAUSED)
                if key is not None and key.owner != shim.owner:
                    raise refusal(self.image, key)
                keys.pop(PAUSED, None)
            return status

    def relink(self, parent: str, raw: bool = False) -> Status:
        """Sets another path of the parent; an active image is paused meanwhile.

        No host can activate it then. An image that was paused before stays so.
        """
        with self.alone() as found:
            shim = self.attached(found)
            status = shim.call("status")
            pauses = status["state"] == "active"
            with self.keys() as keys:
                self._require_no_other(keys, shim)
                keys.add(RELINKING, Owner.here(self.host))
                if pauses:
                    keys.add(PAUSED, shim.owner)
            reached("vdi-relinking")
            try:
                if pauses:
                    self._paused(shim, status)
                modify_parent(self.image, parent, raw)
            finally:
                if pauses:
                    status = shim.call("unpause")
                with self.keys() as keys:
                    keys.pop(RELINKING, None)
                    if pauses:
                        keys.pop(PAUSED, None)
            return status

    def clear(self, force: int | None = None) -> list[Key]:
        """Removes stale keys: those of proven dead owners, and with `force` those of that host.

        Returns what is left. Raises ActivationRefused for a number that no key has.
        """
        self.require_image()
        dead: list[Key] = []
        with self.keys() as keys:
            if force is not None and keys:
                dead, _ = self._overrule(keys, list(keys.values()), force)
            left = list(keys.values())
        self._note_removed(dead)
        return left
