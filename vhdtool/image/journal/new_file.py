"""New files that appear under their name only when they are complete."""

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
    """A writable storage that gets the name `path` on success, and is removed on an error.

    After a crash there is no file of that name, or it is complete. A block device is written
    directly, and only with `overwrite`. Raises as `new_path` does.
    """
    target = os.fspath(path)
    if overwrite and is_block_device(target):
        with claimed(target) as device:
            yield device
            device.flush()
        return
    with new_path(target, overwrite) as part, _created(part, target) as storage:
        yield storage
        storage.flush()


def _created(part: str, target: str) -> FileStorage:
    """The new file `part`; errors name the file that the user asked for."""
    try:
        storage = FileStorage(part, create=True)
    except StorageError as error:
        raise StorageError(target, "create it", error.errno) from None
    storage.name = target
    return storage


@contextmanager
def new_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[str]:
    """The name of a new file beside `path`, which is renamed to `path` on success, else removed.

    A file that is replaced is claimed meanwhile, so that no other process can use it. Raises
    ImageExists, UsageError where `path` is not a regular file, ImageInUse or ActivationRefused
    while the old file is in use, or StorageError.
    """
    target = os.fspath(path)
    mode = _mode(target)
    if mode is not None and not overwrite:
        raise ImageExists(f"{target}: exists already; nothing was written (see --force)")
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        # A rename would replace /dev/null, or the device node of a volume.
        raise UsageError(f"{target}: not a regular file, and only such a file can be replaced")
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
            # A file that appeared meanwhile was not claimed, so it must not be replaced.
            _publish(part, os.path.join(directory, name), overwrite=replaces)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(part)
            if isinstance(error, OSError) and error.filename == part:
                # The user asked for the file of the other name.
                raise StorageError(target, "create it", error.errno or 0) from None
            raise
    # Some network file systems cannot sync a directory; the file itself is durable already.
    with suppress(StorageError):
        _sync(directory or ".", target)


def is_block_device(path: str) -> bool:
    """Whether `path` is a block device; False where nothing exists. Raises StorageError."""
    mode = _mode(path)
    return mode is not None and stat.S_ISBLK(mode)


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        # A dangling link counts as an existing file.
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
        raise ImageExists(f"{target}: another process created it meanwhile") from None
    except OSError as error:
        raise StorageError(target, "create it", error.errno or 0) from None


def _sync(path: str, name: str) -> None:
    """Make the content of a file or directory durable; `name` is for the message."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(name, "flush it", error.errno or 0) from None
