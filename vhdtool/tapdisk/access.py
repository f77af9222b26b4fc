"""How a disk's image is opened: with which lock, for reading or for writing."""

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vhdtool.image.disk.open import QCOW2
from vhdtool.leases.claim import locked_file
from vhdtool.leases.lease import Lease
from vhdtool.nbd.backend import FastPathGate, NoFastPath
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.image_lock import LockMode, NoLocks
from vhdtool.storage.paths import is_lun, open_storage

log = logging.getLogger("disk")


class Access(enum.Enum):
    """How a disk uses the image that it opens."""

    STANDBY = "standby"
    """Reads metadata and serves no request; locks nothing."""
    SHARED = "shared"
    """Serves reads; keeps writers out."""
    ACTIVE = "active"
    """Serves writes; keeps every other user out."""
    UNLOCKED = "unlocked"
    """Serves writes and excludes nobody, as tapdisk2 did."""
    UNLOCKED_READER = "unlocked reader"
    """Serves reads and excludes nobody."""


@dataclass(frozen=True)
class ImageOpener:
    """Opens files, block devices and LUNs. `direct` and `follow` as FileStorage has them.

    `lease_elsewhere`: a lock manager excludes other users too, so a file system without locks is
    accepted.
    """

    direct: bool = True
    follow: bool = True
    lease_elsewhere: bool = False

    def __call__(self, path: Path, access: Access, kind: str) -> Storage:
        """Raises ImageInUse, NoLocks, StorageError."""
        if is_lun(path):
            return open_storage(path)
        if access in (Access.ACTIVE, Access.SHARED):
            mode = LockMode.SERVED if access is Access.ACTIVE else LockMode.SHARED
            try:
                return locked_file(
                    path,
                    mode,
                    direct=self.direct,
                    follow=self.follow,
                    qemu_bytes=kind != QCOW2,
                )
            except NoLocks as error:
                if access is Access.ACTIVE and not self.lease_elsewhere:
                    raise
                log.warning("%s", error)
        writable = access in (Access.ACTIVE, Access.UNLOCKED)
        return FileStorage(path, writable=writable, direct=self.direct, follow=self.follow)


@dataclass(frozen=True)
class Settings:
    """How a shim behaves; fixed for the life of its process."""

    guard: bool
    open_storage: Callable[[Path, Access, str], Storage]
    """(path, access, kind of image) -> the open image, locked as the access asks."""
    open_lease: Callable[[Path], Lease]
    """The lease of the image whose epoch record is at that path."""
    emit: Callable[..., None]
    """emit(event, **fields): one event of the disk."""
    read_only: bool = False
    """The image is only read, and shared with other readers."""
    overlay: bool = False
    """Clients may write all the same: their writes go elsewhere (`ImageSession.image_filter`)."""
    fast_path_gate: Callable[[], FastPathGate] = NoFastPath
    """Makes a disk's gate in the fast path (`nbd.fast_path.new_gate`)."""

    def access(self, leased: bool) -> Access:
        """How an image is opened, with the lease or without it."""
        if not self.guard:
            return Access.UNLOCKED_READER if self.read_only else Access.UNLOCKED
        if not leased:
            return Access.STANDBY
        return Access.SHARED if self.read_only else Access.ACTIVE
