"""Byte-range locks on an image: who may write it, whatever path leads to it.

The lock is an open-file-description lock on the descriptor that does the I/O. It excludes openers
by other paths on this host and other NFSv4 clients. When an NFS server gives the lock to another
client, the kernel answers EIO to every later read and write of that descriptor, and to those in
flight.

Two sets of bytes are locked. QEMU's (from 100 on a byte for each permission that the opener uses,
from 200 on a byte for each one that it does not share; block/file-posix.c) are shared locks that
each opener tests, so that this package and QEMU's tools exclude one another. Two bytes of our own
are locked exclusively, since that is atomic. They are two so that a reopened descriptor can take
one before the old descriptor releases the other.
"""

import enum
import errno
import fcntl
import os
import re
import struct
from contextlib import suppress
from time import monotonic, sleep

from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.storage.base import StorageError

OWN = (300, 301)
"""Locked exclusively by a writer, shared by an opener that needs that nobody writes."""
BENEATH = 302
"""Locked exclusively for every change except those of a server: see LockMode."""
_READ, _WRITE, _RESIZE = 100, 101, 103
_NO_WRITE, _NO_RESIZE = 201, 203
_FLOCK = struct.Struct("hhqqi4x")
_TAKEN = (errno.EAGAIN, errno.EACCES)
MOVE_TIMEOUT = 2.0
"""Seconds within which an opener that only tests the lock must have released it."""


class LockMode(enum.Enum):
    """What a descriptor may do, and what it excludes."""

    EXCLUSIVE = "exclusive"
    """Writes; nobody else writes, or needs the image unchanged."""
    SERVED = "served"
    """The same, but admits RELINK: a server never writes what that changes."""
    SHARED = "shared"
    """Reads; nobody may write. Parents of a served child, and disks served read-only."""
    BENEATH = "beneath"
    """Writes what leaves all readers of a child unaffected; nobody has it exclusively."""
    RELINK = "relink"
    """Writes a parent's name in place into an image that may be served."""


_WRITERS = (LockMode.EXCLUSIVE, LockMode.SERVED)


class ImageInUse(ActivationRefused):
    """Another process has the image open in a way that excludes ours."""


class NoLocks(ActivationRefused):
    """The file system has no byte-range locks, so nobody can be excluded."""


def lock_image(fd: int, name: str, mode: LockMode, qemu: bool = True) -> None:
    """Lock an image through the descriptor that will do the I/O; closing it unlocks.

    `qemu`: QEMU's bytes too; False where a QEMU of this process opens the file and locks them.
    Raises ImageInUse, NoLocks, or StorageError; then the descriptor may hold part of the lock.
    """
    if mode is LockMode.RELINK:
        _take(fd, name, fcntl.F_WRLCK, BENEATH)
        return
    kind = fcntl.F_WRLCK if mode in _WRITERS else fcntl.F_RDLCK
    for byte in OWN:
        _take(fd, name, kind, byte)
    if mode in (LockMode.EXCLUSIVE, LockMode.BENEATH):
        _take(fd, name, fcntl.F_WRLCK, BENEATH)
    if qemu:
        _lock_for_qemu(fd, name, mode)


def _lock_for_qemu(fd: int, name: str, mode: LockMode) -> None:
    writes = mode in _WRITERS
    for byte in (_READ, *((_WRITE, _RESIZE) if writes else ()), _NO_WRITE, _NO_RESIZE):
        _take(fd, name, fcntl.F_RDLCK, byte)
    for byte in (_WRITE, _RESIZE, *((_NO_WRITE, _NO_RESIZE) if writes else ())):
        if is_locked(fd, byte):
            raise in_use(fd, name)


def move_lock(old: int, new: int, name: str, qemu: bool = True) -> None:
    """Move a server's lock to another descriptor of the same file; `old` must close then.

    At every moment one of the two excludes all others. Raises LeaseLost where `old` has lost its
    lock: then neither may write.
    """
    try:
        _set(old, fcntl.F_UNLCK, OWN[1])
        # An opener that asks just now gets the free byte, and releases it again.
        _take_within_timeout(new, OWN[1])
        _set(old, fcntl.F_UNLCK, OWN[0])
        _take_within_timeout(new, OWN[0])
        if qemu:
            for byte in (_READ, _WRITE, _RESIZE, _NO_WRITE, _NO_RESIZE):
                _set(new, fcntl.F_RDLCK, byte)
    except OSError as error:
        raise LeaseLost(
            f"{name}: the lock on the image is lost ({error.strerror}); nothing more is written"
        ) from None


def _take_within_timeout(fd: int, byte: int) -> None:
    end = monotonic() + MOVE_TIMEOUT
    while True:
        try:
            return _set(fd, fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno not in _TAKEN or monotonic() > end:
                raise
        sleep(0.001)


def _take(fd: int, name: str, kind: int, byte: int) -> None:
    try:
        _set(fd, kind, byte)
    except OSError as error:
        if error.errno in _TAKEN:
            raise in_use(fd, name) from None
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise NoLocks(
                f"{name}: its file system has no locks ({error.strerror}), so other users of the "
                "image cannot be excluded; use one that has, or another lease (--lease)"
            ) from None
        raise StorageError(name, "lock it", error.errno or errno.EIO) from None


def _set(fd: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def is_locked(fd: int, byte: int, against: int = fcntl.F_WRLCK) -> bool:
    """Whether another descriptor's lock on that byte excludes ours. Raises OSError."""
    asked = _FLOCK.pack(against, os.SEEK_SET, byte, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def locked_by_writer(fd: int) -> bool:
    """Whether another process, ours or QEMU's, has the file open for writing.

    Takes no lock. False where that cannot be known.
    """
    try:
        own = any(is_locked(fd, byte, fcntl.F_RDLCK) for byte in (*OWN, BENEATH))
        return own or is_locked(fd, _WRITE) or is_locked(fd, _RESIZE)
    except OSError:
        return False


def lock_is_lost(fd: int) -> bool:
    """Whether another process has what our exclusive lock excluded; False where unknown."""
    try:
        return any(is_locked(fd, byte) for byte in OWN)
    except OSError:
        return False


def locks_exclude(path: str, fd: int) -> bool:
    """Whether a second descriptor of the same file sees the exclusive lock of `fd`.

    Raises OSError. On a mount with locks local to this host they are seen here all the same.
    """
    second = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not os.path.sameopenfile(second, fd):
            return True
        return is_locked(second, OWN[0])
    finally:
        os.close(second)


def require_name(fd: int, path: str) -> None:
    """Raise ImageInUse unless `path` still leads to the open file.

    Call it with the lock held: the previous holder may have put another file at the path.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise StorageError(path, "check its path", error.errno or 0) from None
    if status is None or not os.path.samestat(status, os.fstat(fd)):
        raise ImageInUse(f"{path}: was just replaced or removed; try again")


def in_use(fd: int, name: str) -> ImageInUse:
    """Make the error, with the processes of this host that have the image locked."""
    users = local_users(fd)
    who = ", ".join(f"{command} (pid {pid})" for pid, command in users)
    if who:
        return ImageInUse(f"{name}: is in use by {who}; end that first")
    return ImageInUse(
        f"{name}: is in use by a process that cannot be seen from here (another user's, another "
        "container's or another host's); end it there"
    )


_LOCK_LINE = re.compile(r"^lock:\s.*\s(\d+)\s+\S+$", re.MULTILINE)


def local_users(fd: int) -> list[tuple[int, str]]:
    """(pid, command) of the processes here whose descriptors have locks on the file of `fd`.

    Reads proc(5)'s fdinfo, since the kernel names no process for such locks. Ours come last.
    """
    file = os.fstat(fd)
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    found = [(pid, _command(pid)) for pid in pids if _locks(pid, file, fd)]
    return sorted(found, key=lambda user: (user[0] == os.getpid(), user[0]))


def _locks(pid: int, file: os.stat_result, fd: int) -> bool:
    try:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return False
    for number in numbers:
        if pid == os.getpid() and int(number) == fd:
            continue
        with suppress(OSError), open(f"/proc/{pid}/fdinfo/{number}") as info:
            locks = any(int(line[1]) >= _READ for line in _LOCK_LINE.finditer(info.read()))
            # The line is not compared: on btrfs its device is not that of stat(2).
            if locks and os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), file):
                return True
    return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "a process"
