"""System calls for the mounts and namespaces of the local hosts, without a process for each."""

import ctypes
import os
import stat
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/mount.h and sched.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _MOVE, _REC, _PRIVATE = 32, 4096, 8192, 16384, 1 << 18
NEW_MOUNTS, NEW_HOSTNAME, NEW_PIDS, NEW_NETWORK = 0x00020000, 0x04000000, 0x20000000, 0x40000000


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount {source} on {target}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def set_hostname(name: str) -> None:
    _check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def make_private() -> None:
    """Hide all later mounts from other mount namespaces."""
    _mount("none", "/", None, _REC | _PRIVATE)


def proc() -> None:
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)


def tmpfs(target: str, mode: int = 0o755, size: str | None = None) -> None:
    """A tmpfs over `target`; `size` as tmpfs takes it ("1500m"), by default half the memory."""
    options = f"mode={mode:o}" + (f",size={size}" if size else "")
    _mount("tmpfs", target, "tmpfs", _NOSUID | _NODEV, options)


def bind(source: str, target: str) -> None:
    _mount(source, target, None, _BIND | _REC)


def grow(directory: str, name: str, staging: str) -> str:
    """Make a mount point `directory`/`name` without a change to the real file system.

    Where it is missing, `directory` is rebuilt on a tmpfs at the empty directory `staging`: each
    entry is bound into it, and the tmpfs is moved over the original.
    """
    wanted = os.path.join(directory, name)
    if os.path.isdir(wanted):
        return wanted
    tmpfs(staging)
    for entry in os.scandir(directory):
        copy = os.path.join(staging, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), copy)
        elif entry.is_dir():
            os.mkdir(copy)
            bind(entry.path, copy)
        elif entry.is_file():
            Path(copy).touch()
            bind(entry.path, copy)
    os.mkdir(os.path.join(staging, name))
    os.chmod(staging, stat.S_IMODE(os.stat(directory).st_mode))
    _mount(staging, directory, None, _MOVE)
    return wanted
