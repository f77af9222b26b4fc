"""What kind of file system a path is on, by proc(5)'s mountinfo."""

import os
from dataclasses import dataclass

MOUNTINFO = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system's type (`ext4`, `nfs4` ...) and its options, of the mount and of its own."""

    kind: str
    options: frozenset[str]

    @property
    def is_nfs(self) -> bool:
        return self.kind in ("nfs", "nfs4")

    @property
    def keeps_locks_here(self) -> str:
        """The option that keeps byte-range locks from other hosts; "" where none does."""
        told = ("nolock", "local_lock=all", "local_lock=posix", "localflocks", "nobrl")
        return next((option for option in told if option in self.options), "")


def mount_of(path: str | os.PathLike[str], mountinfo: str | None = None) -> Mount | None:
    """The mount that holds a file; None where that cannot be told."""
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
    """Whether the file is on NFS; False where that cannot be told."""
    mount = mount_of(path, mountinfo)
    return mount is not None and mount.is_nfs
