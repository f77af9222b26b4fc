"""An image for this process alone: the lock on it, and its lease where it has an epoch record."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from vhdtool.errors import VhdtoolError
from vhdtool.leases.lease import open_lease
from vhdtool.leases.location import existing_record
from vhdtool.leases.owner import Owner, boot_id
from vhdtool.storage import FileStorage
from vhdtool.storage.image_lock import (
    ImageInUse,
    LockMode,
    NoLocks,
    in_use,
    lock_image,
    locked_by_writer,
    locks_exclude,
    require_name,
)
from vhdtool.storage.locked_file import ImageFile
from vhdtool.storage.paths import loop_over, mount_of

log = logging.getLogger("vhdtool")


def locked_file(
    path: str | os.PathLike[str],
    mode: LockMode,
    *,
    direct: bool = False,
    follow: bool = True,
    qemu_bytes: bool = True,
) -> ImageFile:
    """An image that is locked through the descriptor that does the I/O.

    Raises ImageInUse, StorageError, and for writing NoLocks where a lock would exclude nobody.
    """
    storage = ImageFile(path, mode, direct=direct, follow=follow, qemu_bytes=qemu_bytes)
    if mode in (LockMode.EXCLUSIVE, LockMode.SERVED):
        try:
            _require_exclusion(storage)
        except BaseException:
            storage.close()
            raise
    return storage


def _require_exclusion(storage: FileStorage) -> None:
    name = storage.name
    if device := loop_over(os.fstat(storage.fileno())):
        raise ImageInUse(f"{name}: is the file behind {device}; `losetup -d {device}` first")
    try:
        excludes = locks_exclude(storage.path, storage.fileno())
    except OSError:
        # What made the second opening fail says nothing about locks.
        excludes = True
    if not excludes:
        raise NoLocks(
            f"{name}: its file system lets two descriptors have one exclusive lock, so other "
            "users of the image cannot be kept out; use one that keeps locks, or --lease"
        )
    mount = mount_of(storage.path)
    if mount is not None and (option := mount.local_locks_option):
        raise NoLocks(
            f"{name}: is mounted with {option}, so other hosts do not see its lock; mount it "
            "without that, or use another lease (--lease)"
        )


@contextmanager
def claimed(
    path: str | os.PathLike[str],
    mode: LockMode = LockMode.EXCLUSIVE,
    force_epoch: int | None = None,
) -> Iterator[FileStorage]:
    """The image at `path`, open for writing, while nobody else may use it.

    An image that was served has an epoch record: then the lease is taken at a new epoch, and
    released at the end. `force_epoch` takes the lease of a holder that is dead. LockMode.RELINK
    takes none, since the server has it.

    Raises ImageInUse or ActivationRefused, naming who has it, or StorageError.
    """
    try:
        storage: FileStorage = locked_file(path, mode)
    except ImageInUse as error:
        raise named_holder(error, _recorded(path), force_epoch) from None
    except NoLocks as error:
        # Every command would refuse to work there; what excludes then is the epoch record alone.
        log.warning("%s", error)
        storage = FileStorage(path, writable=True)
    with storage:
        record = None if mode is LockMode.RELINK else existing_record(path)
        if record is None:
            yield storage
            return
        with closing(open_lease(record, Owner.here(), guard=True)) as lease:
            lease.acquire(force_epoch)
            try:
                yield storage
            finally:
                lease.release()


def share(storage: FileStorage) -> None:
    """Keeps everybody from writing an image that is open, until it is closed.

    Raises ImageInUse, naming who writes it. A file system without locks lets everybody write.
    """
    try:
        lock_image(storage.fileno(), storage.name, LockMode.SHARED)
        require_name(storage.fileno(), storage.path)
    except NoLocks:
        return
    except ImageInUse as error:
        raise named_holder(error, _recorded(storage.path), None) from None


def _recorded(path: str | os.PathLike[str]) -> tuple[Owner, int] | None:
    """Whom the image's record names, for a message; a damaged record names nobody."""
    record = existing_record(path)
    if record is None:
        return None
    try:
        with closing(open_lease(record, Owner.here(), guard=True)) as lease:
            return lease.held()
    except VhdtoolError:
        return None


def who_has(path: str | os.PathLike[str]) -> str:
    """Who has an image open for writing, in words; "" where nobody does or none can tell.

    Takes no lock, so it disturbs nobody. Raises StorageError.
    """
    with FileStorage(path) as storage:
        if not locked_by_writer(storage.fileno()):
            return ""
        return str(named_holder(in_use(storage.fileno(), storage.name), _recorded(path), None))


def user_of(path: str | os.PathLike[str]) -> str:
    """Who uses an image, by its lock or else by its record, in words; "" for nobody."""
    if who := who_has(path):
        return who
    held = _recorded(path)
    if held is None or held[0].is_gone():
        return ""
    return f"{os.fspath(path)}: the lease is held by {held[0]} at epoch {held[1]}"


def named_holder(
    error: ImageInUse, held: tuple[Owner, int] | None, force_epoch: int | None
) -> ImageInUse:
    """The refusal, with the holder that the epoch record names, and what --force can do."""
    text = str(error)
    if held is not None:
        text += f"; the lease is held by {held[0]} at epoch {held[1]}"
    if force_epoch is not None:
        cure = (
            "end that process"
            if held is None or held[0].boot == boot_id()
            else "its host still renews the lock: end the process there, or fence the host; "
            "the storage server lets go of a dead host's lock after its lease time"
        )
        text += f"; --force {force_epoch} takes only what is free: {cure}"
    return ImageInUse(text)
