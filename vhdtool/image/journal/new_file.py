"""New files that appear under their name only when they are whole."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from vhdtool.errors import ImageExists, UsageError
from vhdtool.leases.claim import claimed
from vhdtool.storage import FileStorage, StorageError
from vhdtool.storage.image_lock import require_name

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[FileStorage]:
    """A writable storage that becomes `path` when the block ends well, and vanishes otherwise.

    After a crash the name is not there, or the file behind it is complete. A block device is
    written directly, and only with `overwrite`. Raises as `new_path`.
    """
    target = os.fspath(path)
    if overwrite and is_block_device(target):
        with claimed(target) as device:
            yield device
            device.flush()
        return
    with (
        new_path(target, overwrite) as part,
        FileStorage(part, create=True) as storage,
    ):
        storage.name = target
        yield storage
        storage.flush()


@contextmanager
def new_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[str]:
    """A name beside `path` for a new file; it is renamed to `path` when the block ends well and
    removed otherwise. A file that is replaced is claimed meanwhile: nobody else may use it.

    Raises ImageExists, UsageError for what is no file, ImageInUse or ActivationRefused while
    somebody uses the old file, or StorageError.
    """
    target = os.fspath(path)
    mode = _mode(target)
    if mode is not None and not overwrite:
        raise ImageExists(f"{target}: exists already; it is left as it is (see --force)")
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        # A rename would put the file in the place of /dev/null or of a volume's device node.
        raise UsageError(f"{target}: is no regular file, and only such a file can be replaced")
    directory, name = os.path.split(os.path.realpath(target) if overwrite else target)
    short = os.fsdecode(os.fsencode(name)[:200])
    part = os.path.join(directory, f".{short}.{os.urandom(4).hex()}.part")
    replaces = mode is not None and stat.S_ISREG(mode)
    with claimed(target) if replaces else nullcontext() as old:
        try:
            yield part
            _sync(part, target)
            if old is not None:
                require_name(old.fileno(), target)
            # What was not there to be claimed is not replaced either: it is in use, perhaps.
            _publish(part, os.path.join(directory, name), overwrite=replaces)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    # Some network file systems refuse it; the file itself is durable already.
    with suppress(StorageError):
        _sync(directory or ".", target)


def is_block_device(path: str) -> bool:
    """False for what is not there. Raises StorageError when it cannot be looked at."""
    mode = _mode(path)
    return mode is not None and stat.S_ISBLK(mode)


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


def _sync(path: str, name: str) -> None:
    """What the file or directory holds is durable afterwards; `name` is for the message."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(name, "flush it", error.errno or 0) from None
