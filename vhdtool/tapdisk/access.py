"""How a disk's image is opened: with which lock, for reading or for writing."""

import enum
import logging
from dataclasses import dataclass
from pathlib import Path

from vhdtool.image.disk.open import QCOW2
from vhdtool.leases.claim import locked_file
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.image_lock import LockMode, NoLocks
from vhdtool.storage.open import is_lun, open_anywhere

log = logging.getLogger("disk")


class Access(enum.Enum):
    """What a disk is going to do with the image that it opens."""

    LOOK = "look"
    """A standby's early read: it serves no request, and locks nothing."""
    SHARED = "shared"
    """It serves reads; nobody may write meanwhile."""
    ACTIVE = "active"
    """It writes, and nobody else may."""
    TRUSTING = "trusting"
    """It writes and excludes nobody, as tapdisk2 did."""
    TRUSTING_READER = "trusting reader"
    """It reads, whoever writes."""


@dataclass(frozen=True)
class ImageOpener:
    """Opens files, block devices and LUNs. `direct` and `follow` as FileStorage has them.

    `lease_elsewhere`: another lease excludes too, so that a file system without locks will do.
    """

    direct: bool = True
    follow: bool = True
    lease_elsewhere: bool = False

    def __call__(self, path: Path, access: Access, kind: str) -> Storage:
        """Raises ImageInUse, NoLocks, StorageError."""
        if is_lun(path):
            return open_anywhere(path)
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
        writable = access in (Access.ACTIVE, Access.TRUSTING)
        return FileStorage(path, writable=writable, direct=self.direct, follow=self.follow)
