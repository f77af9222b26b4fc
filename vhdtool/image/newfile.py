"""New files that appear under their name only when they are whole."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vhdtool.errors import ImageExists
from vhdtool.storage import FileStorage, StorageError

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[FileStorage]:
    """A writable storage that becomes `path` when the block ends well, and vanishes otherwise.

    After a crash the name is not there, or the file behind it is complete. A block device is
    written directly, and only with `overwrite`. Raises ImageExists, or StorageError.
    """
    target = os.fspath(path)
    mode = _mode(target)
    if mode is not None and not overwrite:
        raise ImageExists(f"{target}: exists already; it is left as it is (see --force)")
    if mode is not None and stat.S_ISBLK(mode):
        with FileStorage(target, writable=True) as device:
            yield device
            device.flush()
        return
    directory, name = os.path.split(os.path.realpath(target) if overwrite else target)
    part = os.path.join(directory, f".{name[:200]}.{os.urandom(4).hex()}.part")
    with FileStorage(part, create=True) as storage:
        storage.name = target
        try:
            yield storage
            storage.flush()
            _publish(part, os.path.join(directory, name), overwrite)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    _sync_directory(directory or ".")


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        # A dangling link counts as something that is there.
        return stat.S_IFLNK if os.path.islink(path) else None
    except OSError as error:
        raise StorageError(path, "create it", error.errno or 0) from None


def _publish(part: str, target: str, overwrite: bool) -> None:
    try:
        if overwrite:
            os.rename(part, target)
            return
        try:
            os.link(part, target)
            os.unlink(part)
        except OSError as error:
            if error.errno not in _NO_LINKS or os.path.lexists(target):
                raise
            os.rename(part, target)
    except FileExistsError:
        raise ImageExists(f"{target}: somebody else created it meanwhile") from None
    except OSError as error:
        raise StorageError(target, "create it", error.errno or 0) from None


def _sync_directory(directory: str) -> None:
    # Some network file systems refuse it; the file itself is durable already.
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
