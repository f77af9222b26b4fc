"""Opens a storage by its path or iSCSI URL."""

import os
from typing import TYPE_CHECKING

from vhdtool.storage.file import FileStorage

if TYPE_CHECKING:
    from vhdtool.storage.iscsi import IscsiStorage


def is_lun(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an iSCSI URL; a Path has joined its two slashes to one."""
    return os.fspath(path).startswith("iscsi:/")


def open_anywhere(
    path: str | os.PathLike[str],
    writable: bool = False,
    direct: bool = False,
    follow: bool = True,
) -> "FileStorage | IscsiStorage":
    """Open the storage at a path or `iscsi://HOST[:PORT]/TARGET/LUN`; a LUN is always direct.

    Raises StorageError, and UsageError for an invalid URL.
    """
    if is_lun(path):
        # Imported late: files do not need it.
        from vhdtool.storage.iscsi import IscsiStorage
        from vhdtool.storage.scsi import Lun

        return IscsiStorage(Lun.parse(os.fspath(path)))
    return FileStorage(path, writable=writable, direct=direct, follow=follow)
