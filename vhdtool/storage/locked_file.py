"""The file or block device of an image, locked through the descriptor that does the I/O."""

import errno
import os
from typing import Self

from vhdtool.errors import LeaseLost
from vhdtool.storage.base import StorageError
from vhdtool.storage.file import FileStorage
from vhdtool.storage.image_lock import (
    ImageInUse,
    LockMode,
    lock_image,
    lock_is_lost,
    move_lock,
    require_name,
)
from vhdtool.storage.paths import loop_file


class ImageFile(FileStorage):
    """A file or device with a lock until it is closed; open for writing unless SHARED.

    A block device that is written is opened with O_EXCL: then the kernel refuses a second such
    open, and a mount. The file behind a loop device is locked too. `qemu_bytes` is False where a
    QEMU of this process opens the file as well.

    Raises ImageInUse, NoLocks, StorageError.
    """

    holds_lock = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: LockMode | None,
        *,
        direct: bool = False,
        follow: bool = True,
        qemu_bytes: bool = True,
    ) -> None:
        """`mode` None: the lock of another ImageFile will be moved here."""
        writes = mode is not LockMode.SHARED
        exclusive = 0 if mode in (None, LockMode.SHARED, LockMode.RELINK) else os.O_EXCL
        try:
            super().__init__(path, writes, direct, follow=follow, device_flags=exclusive)
        except StorageError as error:
            if error.errno != errno.EBUSY:
                raise
            raise ImageInUse(
                f"{os.fspath(path)}: the device is mounted, or another process has it "
                "exclusively; end that first"
            ) from None
        self._follow = follow
        self._behind: ImageFile | None = None
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        if mode is not None:
            try:
                lock_image(self._fd, self.name, mode, qemu_bytes)
                require_name(self._fd, self.path)
                if self.is_block_device and (file := loop_file(status.st_rdev)) is not None:
                    self._behind = ImageFile(file, mode)
            except BaseException:
                self.close()
                raise

    def check_identity(self) -> None:
        """Raise LeaseLost when the path does not lead to the open file any more."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            raise LeaseLost(
                f"{self.path}: was removed or renamed while it is open here; nothing more is "
                "written to the file that had this name"
            ) from None
        except OSError as error:
            raise self._failure(error, "check its path") from None
        if (there.st_dev, there.st_ino) != self._identity:
            raise LeaseLost(
                f"{self.path}: another file has taken this name while the old one is open here; "
                "nothing more is written to the old one"
            )

    def lock_is_lost(self) -> bool:
        """Whether another process has the exclusive lock; False where that cannot be known."""
        return lock_is_lost(self._fd)

    def reopened(self) -> Self:
        """Open the file at the path anew, in the same way, and move the server's lock there.

        This storage must close then. Raises StorageError, or LeaseLost when the lock is lost or
        the path leads to another file.
        """
        self.check_identity()
        new: Self = type(self)(self.path, None, direct=self.direct, follow=self._follow)
        try:
            if new._identity != self._identity:
                raise LeaseLost(f"{self.path}: another file has taken this name")
            move_lock(self._fd, new.fileno(), self.name)
        except BaseException:
            new.close()
            raise
        new._behind, self._behind = self._behind, None
        return new

    def close(self) -> None:
        super().close()
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.close()
