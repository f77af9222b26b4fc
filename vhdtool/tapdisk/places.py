"""What kind of storage a path is on."""

import os
from pathlib import Path


def on_nfs(path: Path, mounts: str = "/proc/self/mountinfo") -> bool:
    """Whether the file is on NFS, by proc(5)'s mountinfo; False where that cannot be told."""
    try:
        device = os.stat(path).st_dev
        text = Path(mounts).read_text()
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split(maxsplit=1)[0] in ("nfs", "nfs4")
    return False
