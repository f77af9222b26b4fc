"""An image wherever it lies: in a file, on a block device, or on a LUN."""

import os
from typing import TYPE_CHECKING

from vhdtool.storage.file import FileStorage

if TYPE_CHECKING:
    from vhdtool.storage.iscsi import IscsiStorage


def is_lun(path: str | os.PathLike[str]) -> bool:
    """Whether an image is named as a LUN; a Path has made one slash of two."""
    return os.fspath(path).startswith("iscsi:/")


def open_anywhere(
    path: str | os.PathLike[str],
    writable: bool = False,
    direct: bool = False,
    follow: bool = True,
) -> "FileStorage | IscsiStorage":
    """The storage at a path or `iscsi://HOST[:PORT]/TARGET/LUN`; a LUN is always direct.

    Raises StorageError, and UsageError for a URL that makes no sense.
    """
    if is_lun(path):
        # Few need it: not loaded for files.
        from vhdtool.storage.iscsi import IscsiStorage
        from vhdtool.storage.scsi import Lun

        return IscsiStorage(Lun.parse(os.fspath(path)))
    return FileStorage(path, writable=writable, direct=direct, follow=follow)
