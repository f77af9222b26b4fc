"""The disks of a tapdisk: what a minor is, how its image is opened, and what stats say of it."""

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vhdtool.errors import ActivationRefused, LeaseLost, SplitBrain, StateError, VhdtoolError
from vhdtool.storage import FileStorage
from vhdtool.tapdisk import tapctl_wire as wire
from vhdtool.tapdisk.disk import Settings, TapDisk
from vhdtool.tapdisk.lease import Owner, open_lease
from vhdtool.tapdisk.nbd import NbdServer
from vhdtool.tapdisk.serve import disk_size

TYPES = {"vhd": False, "aio": True, "raw": True}
"""Image types -> whether the file is a disk as it is."""


class Refused(VhdtoolError):
    """An operation that is answered with an errno."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.errno = number


@dataclass
class Vbd:
    """One minor: nothing, or an open disk."""

    minor: int
    args: str = ""
    state: int = 0
    disk: TapDisk | None = None
    server: NbdServer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open_disk(self) -> TapDisk:
        if self.disk is None:
            raise Refused(errno.EINVAL, f"minor {self.minor} has no open image")
        return self.disk


def image_of(args: str) -> tuple[Path, bool]:
    """(path, raw) of `vhd:/path` or `aio:/path`. Raises Refused."""
    kind, colon, path = args.partition(":")
    if not colon or kind not in TYPES:
        raise Refused(errno.EINVAL, f"{args}: say vhd:/path or aio:/path")
    return Path(path), TYPES[kind]


def started(args: str, flags: int, guard: bool, owner: Owner, emit: Callable[..., Any]) -> TapDisk:
    """An open disk. Raises what keeps it from being opened."""
    image, raw = image_of(args)
    direct, writable = not flags & wire.NO_O_DIRECT, not flags & wire.RDONLY
    disk = TapDisk(
        Settings(
            guard=guard,
            open_storage=lambda place: FileStorage(place, writable=writable, direct=direct),
            open_lease=lambda place: open_lease(place, owner, guard),
            emit=emit,
        )
    )
    disk.read_only = not writable
    disk.attach(image, disk_size(image, raw), raw)
    try:
        if guard:
            disk.activate()
        else:
            disk.open()
    except BaseException:
        disk.detach()
        raise
    return disk


def stats_of(vbd: Vbd) -> dict[str, object]:
    """What tap-ctl's stats show of a minor; sectors of 512 bytes."""
    kind, _, path = vbd.args.partition(":")
    reads, writes = vbd.disk.sectors() if vbd.disk is not None else (0, 0)
    images = []
    if vbd.disk is not None:
        driver = {"type": 4 if kind == "vhd" else 0, "name": kind, "status": None}
        images = [{"name": path, "hits": [reads, writes], "fail": [0, 0], "driver": driver}]
    return {
        "name": vbd.args,
        "secs": [reads, writes],
        "images": images,
        "reqs_outstanding": 0,
        "nbd_mirror_failed": 0,
        "read_caching": "false",
    }


def errno_of(error: VhdtoolError) -> int:
    """The errno that says best what happened."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    if isinstance(error, ActivationRefused | LeaseLost | SplitBrain):
        return errno.EBUSY
    return errno.EINVAL if isinstance(error, StateError) else errno.EIO
