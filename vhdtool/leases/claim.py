"""Claims: the lock on an image together with its lease, where it has an epoch record."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from vhdtool.errors import VhdtoolError
from vhdtool.leases.lease import Holder, open_lease
from vhdtool.leases.location import existing_record
from vhdtool.leases.owner import Owner
from vhdtool.machine import boot_id
from vhdtool.storage import FileStorage, Storage
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
    """Opens an image that is locked through the descriptor that does the I/O.

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
        # The second open failed for another reason than a lock.
        excludes = True
    if not excludes:
        raise NoLocks(
            f"{name}: its file system lets two descriptors have one exclusive lock, so other "
            "users of the image cannot be excluded; use one that keeps locks, or --lease"
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
    """Opens an image for writing and excludes all other users meanwhile.

    The lease is taken too where the image was served before, and so has an epoch record.
    `force_epoch` takes the lease of a holder that is dead. LockMode.RELINK takes no lease, since
    the server has it.

    Raises ImageInUse or ActivationRefused, naming the user, or StorageError.
    """
    try:
        storage: FileStorage = locked_file(path, mode)
    except ImageInUse as error:
        raise named_holder(error, _recorded(path), force_epoch) from None
    except NoLocks as error:
        # Else no command would work there; the epoch record alone excludes others.
        log.warning("%s", error)
        storage = FileStorage(path, writable=True)
    with storage:
        record = None if mode is LockMode.RELINK else existing_record(path)
        if record is None:
            yield storage
            return
        with closing(open_lease(record, Owner.here())) as lease:
            lease.acquire(force_epoch)
            try:
                yield storage
            finally:
                lease.release()


def share(storage: Storage) -> None:
    """Locks an open image against writers until it is closed; without locks, does nothing.

    Raises ImageInUse, naming the writer.
    """
    fd = storage.fileno()
    if fd is None:
        return
    try:
        lock_image(fd, storage.name, LockMode.SHARED)
        require_name(fd, storage.name)
    except NoLocks:
        return
    except ImageInUse as error:
        raise named_holder(error, _recorded(storage.name), None) from None


def _recorded(path: str | os.PathLike[str]) -> Holder | None:
    """Returns the holder in the image's record, for a message; none from a damaged record."""
    record = existing_record(path)
    if record is None:
        return None
    try:
        with closing(open_lease(record, Owner.here())) as lease:
            return lease.holder()
    except VhdtoolError:
        return None


def writer_of(path: str | os.PathLike[str]) -> str:
    """Describes the process that has an image open for writing; "" for none, or unknown.

    Takes no lock. Raises StorageError.
    """
    with FileStorage(path) as storage:
        if not locked_by_writer(storage.fileno()):
            return ""
        return str(named_holder(in_use(storage.fileno(), storage.name), _recorded(path), None))


def user_of(path: str | os.PathLike[str]) -> str:
    """Describes the user of an image by its lock, else by its record; "" for none."""
    if writer := writer_of(path):
        return writer
    holder = _recorded(path)
    if holder is None or holder.owner.is_gone():
        return ""
    return f"{os.fspath(path)}: the lease is held by {holder}"


def named_holder(error: ImageInUse, holder: Holder | None, force_epoch: int | None) -> ImageInUse:
    """Returns the refusal with the holder in the epoch record, and with what --force can do."""
    text = str(error)
    if holder is not None:
        text += f"; the lease is held by {holder}"
    if force_epoch is not None:
        cure = (
            "end that process"
            if holder is None or holder.owner.boot == boot_id()
            else "its host still renews the lock: end the process there, or fence the host; "
            "the storage server lets go of a dead host's lock after its lease time"
        )
        text += f"; --force {force_epoch} takes only what is free: {cure}"
    return ImageInUse(text)
