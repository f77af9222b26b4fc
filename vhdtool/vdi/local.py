"""A VDI on this host: its folder, its shim, and one operation at a time."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vhdtool.errors import ActivationRefused, StateError, UsageError
from vhdtool.leases.shared_file import SharedFile
from vhdtool.storage import StorageError
from vhdtool.storage.paths import is_lun, persistent_path
from vhdtool.vdi.keys import READ_ONLY, READ_WRITE, Key, Keys, host_key, key_file
from vhdtool.vdi.shim import BackendError, ShimConnection, Sockets, connected

PATIENCE = 30.0
"""Seconds for which an operation waits for another one, as XCP's storage manager does."""
POLL = 0.05
Status = dict[str, Any]


class LocalVdi:
    """One image, as one host has it."""

    def __init__(
        self,
        image: str,
        host: str,
        run_dir: Path,
        control: Path | None = None,
        patience: float = PATIENCE,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`control`: the socket of a shim that the caller has started, and will end.

        `note` gets a line for each stale key that is removed. Raises UsageError.
        """
        if is_lun(image):
            raise UsageError(f"{image}: a LUN has no file beside it for the keys; name a file")
        self.key_name = host_key(host)
        self.image, self.host = os.path.abspath(image), host
        self.folder = Path(os.path.abspath(run_dir)) / host
        self.sockets = Sockets.of(self.image, self.folder)
        self.own_shim = control is None
        """Whether attach starts the shim and detach ends it."""
        self.control = control or self.sockets.control
        self.patience, self.note = patience, note

    # one operation at a time

    @contextlib.contextmanager
    def alone(self) -> Iterator[ShimConnection | None]:
        """Excludes other operations on this image on this host; gives the shim, if there is one."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(str(self.folder), "make the directory", error.errno or 0) from None
        lock = SharedFile(self.folder / "lock", "lock file")
        try:
            self._lock(lock)
            with connected(self.control, self.host) as shim:
                yield shim
        finally:
            lock.close()

    def _lock(self, lock: SharedFile) -> None:
        real = os.fsencode(persistent_path(self.image))
        byte = int.from_bytes(hashlib.sha256(real).digest()[:7], "big")
        for _ in self.waiting():
            if lock.try_lock(byte):
                return
        raise ActivationRefused(
            f"{self.image}: another operation of this host still runs after {self.patience:g} s; "
            f"find it with `lslocks | grep {lock.path}`"
        )

    def waiting(self) -> Iterator[None]:
        """Goes round, with a pause between, until the patience is over; at least once."""
        deadline = time.monotonic() + self.patience
        yield
        while time.monotonic() < deadline:
            time.sleep(POLL)
            yield

    # the image and its shim

    def require_image(self) -> None:
        """Raises StorageError for no image, UsageError for a device, which can have no keys."""
        if os.path.exists(self.image) and not os.path.isfile(self.image):
            raise UsageError(f"{self.image}: is no file; the keys need one that all hosts see")
        try:
            os.stat(self.image)
        except OSError as error:
            raise StorageError(self.image, "open it", error.errno or 0) from None

    def attached(self, shim: ShimConnection | None) -> ShimConnection:
        """Raises StateError unless the image is attached here."""
        if shim is None or shim.call("status")["state"] == "detached":
            self.require_image()
            raise StateError(f"{self.image}: is not attached on {self.host}; attach it first")
        return shim

    def started(self, shim: ShimConnection | None) -> ShimConnection:
        if shim is None:
            raise BackendError(f"{self.control}: no shim listens there")
        return shim

    # the keys

    @contextlib.contextmanager
    def keys(self) -> Iterator[Keys]:
        """The keys to change; those whose owner is proven gone are removed first."""
        with key_file(self.image) as file:
            with file.change() as keys:
                stale = keys.gone()
                keys.drop(*stale)
                yield keys
            for key in stale:
                self.note(f"{self.image}: removed a stale key, its owner is gone: {key}")

    def read_keys(self) -> Keys:
        """The keys as they are now; stale ones too."""
        with key_file(self.image) as file:
            return file.read()

    def crashed(self, shim: ShimConnection | None) -> Key | None:
        """Our host's key, where the shim that wrote the image is gone and has not closed it."""
        if shim is not None:
            return None
        key = self.read_keys().get(self.key_name)
        return key if key is not None and key.mode == READ_WRITE and key.state == "gone" else None


def mode_of(status: Status) -> str:
    return READ_ONLY if status["read_only"] else READ_WRITE
