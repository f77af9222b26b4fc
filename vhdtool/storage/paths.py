"""What a path leads to: its storage, persistent name, mount, and the file behind a loop device."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdtool.storage.file import FileStorage

if TYPE_CHECKING:
    from vhdtool.storage.iscsi import IscsiStorage

SYSFS = "/sys/block"
MAPPER = "/dev/mapper"
MOUNTINFO = "/proc/self/mountinfo"
_DM = re.compile(r"/dev/(dm-\d+)")
_LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=posix", "localflocks", "nobrl")


def is_lun(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an iSCSI URL; a Path has joined its two slashes to one."""
    return os.fspath(path).startswith("iscsi:/")


def open_storage(
    path: str | os.PathLike[str], direct: bool = False
) -> "FileStorage | IscsiStorage":
    """Open a file, a block device, or `iscsi://HOST[:PORT]/TARGET/LUN`, which is always direct.

    Raises StorageError, and UsageError for an invalid URL.
    """
    if not is_lun(path):
        return FileStorage(path, direct=direct)
    # Imported late: files do not need it.
    from vhdtool.storage.iscsi import IscsiStorage
    from vhdtool.storage.scsi import Lun

    return IscsiStorage(Lun.parse(os.fspath(path)))


def persistent_path(path: str | os.PathLike[str]) -> str:
    """The real path; for a device-mapper volume the path with its name, not its number.

    A number like /dev/dm-3 belongs to another volume as soon as volumes are activated in another
    order, so a child must never store it.
    """
    real = os.path.realpath(path)
    match = _DM.fullmatch(real)
    if match is None:
        return real
    try:
        with open(f"{SYSFS}/{match[1]}/dm/name", encoding="utf-8") as file:
            return f"{MAPPER}/{file.read().strip()}"
    except OSError:
        return real


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system's type (`ext4`, `nfs4` ...), with the options of mount and superblock."""

    kind: str
    options: frozenset[str]

    @property
    def is_nfs(self) -> bool:
        return self.kind in ("nfs", "nfs4")

    @property
    def local_locks_option(self) -> str:
        """The option that hides byte-range locks from other hosts; "" where there is none."""
        return next((option for option in _LOCAL_LOCKS if option in self.options), "")


def mount_of(path: str | os.PathLike[str], mountinfo: str | None = None) -> Mount | None:
    """The mount that holds a file, from proc(5)'s mountinfo; None where it cannot be found."""
    try:
        device = os.stat(path).st_dev
        with open(mountinfo or MOUNTINFO) as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        kind, _, options = [*right.split(" "), "", ""][:3]
        if fields[2] == wanted:
            return Mount(kind, frozenset([*fields[5].split(","), *options.split(",")]))
    return None


def on_nfs(path: str | os.PathLike[str], mountinfo: str | None = None) -> bool:
    """Whether the file is on NFS; False where its mount cannot be found."""
    mount = mount_of(path, mountinfo)
    return mount is not None and mount.is_nfs


def loop_file(device: int) -> str | None:
    """The file behind the loop device of that number (st_rdev); None for any other device.

    A loop device is a second name of a file, and its I/O ignores locks on that file.
    """
    backing = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file"
    try:
        return os.fsdecode(_first_line(backing))
    except OSError:
        return None


def loop_over(file: os.stat_result) -> str | None:
    """A writable loop device over a file; None where there is none."""
    try:
        names = [name for name in os.listdir(SYSFS) if name.startswith("loop")]
    except OSError:
        return None
    for name in names:
        folder = f"{SYSFS}/{name}"
        # A device without a file has no such entry.
        with suppress(OSError):
            backing = os.stat(os.fsdecode(_first_line(f"{folder}/loop/backing_file")))
            if os.path.samestat(backing, file) and _first_line(f"{folder}/ro") == b"0":
                return f"/dev/{name}"
    return None


def _first_line(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read().rstrip(b"\n")
