"""The images of a tapdisk: what an argument names, how it is opened, what keeps it from that."""

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import (
    ActivationRefused,
    CorruptImage,
    LeaseLost,
    NotAVhd,
    SplitBrain,
    StateError,
    UnsupportedImage,
    VhdtoolError,
)
from vhdtool.image.disk.open import QCOW2, RAW, VHD, disk_size
from vhdtool.image.edit.batmap_fields import read_batmap_fields
from vhdtool.image.metadata.read import read_metadata
from vhdtool.leases.factory import lease_opener
from vhdtool.leases.owner import Owner
from vhdtool.nbd import fast_path
from vhdtool.storage import FileStorage
from vhdtool.tapdisk.access import ImageOpener, Settings
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.filters import Copy, Layers

TYPES = {"vhd": VHD, "aio": RAW, "qcow2": QCOW2}
"""Image types -> what the file is. tapdisk has no driver for the last one."""
KNOWN = frozenset(
    "sync vmdk vhdsync ram qcow bc vhdi log remus lc llp lle valve nbd".split()  # noqa: SIM905
)
"""Types that tapdisk has a name for (and often no driver), and this one does not serve."""
LONGEST_TYPE = 31
NO_MIRROR = "null"
"""As a secondary image: from now on there is none."""
_REASONS = {
    wire.SHARED: "no image is shared with another writer here",
    wire.ADD_CACHE: "no block cache is kept here",
    wire.VHD_INDEX: "no index of VHDs is kept here",
}


class Refused(VhdtoolError):
    """An operation that is answered with an errno."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.errno = number


@dataclass(frozen=True)
class Opening:
    """What is the same for all disks of a process."""

    guard: bool
    owner: Owner
    emit: Callable[..., Any]
    run_dir: Path

    def marker(self, minor: int) -> Path:
        return self.run_dir / "tapdisk" / f"tapdisk-{minor}"

    def nbd(self, minor: int) -> Path:
        return self.run_dir / f"nbd{os.getpid()}.{minor}"


def locked_marker(path: Path) -> int:
    """The file of a minor, locked against `free` and against another tapdisk. Raises Refused."""
    try:
        marker = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Refused(errno.EPERM, f"{path}: allocate the minor first") from None
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(marker)
        raise Refused(errno.EBUSY, f"{path}: attached to another tapdisk") from None
    return marker


def image_of(args: str) -> tuple[Path, str]:
    """(path, kind) of `vhd:/path` or `aio:/path`. Raises Refused with the errno of tapdisk."""
    kind, colon, path = args.partition(":")
    if not colon:
        raise Refused(errno.EINVAL, f"{args}: say vhd:/path or aio:/path")
    if len(kind) > LONGEST_TYPE:
        raise Refused(errno.ENAMETOOLONG, f"{kind}: longer than any type")
    if kind in KNOWN:
        raise Refused(errno.ENOSYS, f"{kind}: not served here; say vhd:/path or aio:/path")
    if kind not in TYPES:
        raise Refused(errno.ENOENT, f"{kind}: no such type; say vhd:/path or aio:/path")
    if not path:
        raise Refused(errno.ENOENT, f"{args}: names no file")
    if Path(path).is_dir():
        raise Refused(errno.EISDIR, f"{path}: a directory")
    return Path(path), TYPES[kind]


def check_flags(params: wire.Params) -> None:
    """Raises Refused for what would be promised and not kept.

    A read cache (ADD_LCACHE) is left out without a word: it changes no answer. STANDBY says how
    a secondary image is used, and means nothing without one.
    """
    flags = params.flags
    if flags & wire.SECONDARY and flags & wire.STANDBY and params.secondary != NO_MIRROR:
        raise Refused(errno.ENOSYS, "no image takes over here when there is no space (-s -2)")
    for flag, why in _REASONS.items():
        if flags & flag:
            raise Refused(errno.ENOSYS, why)
    if flags & wire.REUSE_PRT:
        raise Refused(errno.ENOENT, f"minor {params.parent}: no device whose parents to share")
    if flags & wire.ENCRYPTED:
        raise Refused(errno.EINVAL, "no image is decrypted here (-E)")


def started(params: wire.Params, layers: Layers | None, how: Opening) -> TapDisk:
    """An open disk. Raises what keeps it from being opened."""
    check_flags(params)
    image, what = image_of(params.path)
    direct = not params.flags & wire.NO_O_DIRECT
    writable = not params.flags & wire.RDONLY
    if what == VHD:
        _refuse_encrypted(image)
    disk = TapDisk(
        Settings(
            guard=how.guard,
            open_storage=ImageOpener(direct),
            open_lease=lease_opener(None, how.owner, how.guard, not writable),
            emit=how.emit,
            fast_path_gate=fast_path.new_gate,
            read_only=not writable,
        )
    )
    if layers is not None:
        put_over(disk, layers)
    disk.attach(image, disk_size(image, what), what)
    try:
        if how.guard:
            disk.activate()
        else:
            disk.open()
    except BaseException:
        disk.detach()
        raise
    return disk


def layers_of(params: wire.Params, changes: str, how: Opening, before: str = "") -> Layers:
    """What a request wants over its image; `before`: the secondary image so far."""
    secondary = before
    if params.flags & wire.SECONDARY:
        secondary = "" if params.secondary == NO_MIRROR else params.secondary
    keep = params.flags & (wire.RDONLY | wire.NO_O_DIRECT)

    def open_copy(args: str, size: int) -> Copy:
        disk = started(wire.Params(keep, path=args), None, how)
        if disk.size != size:
            disk.detach()
            raise Refused(errno.EINVAL, f"{args}: {disk.size} bytes, the disk has {size}")
        return DiskCopy(disk)

    return Layers(changes, secondary, open_copy)


class DiskCopy:
    """A mirror's second image: a disk of its own, with its own lease."""

    def __init__(self, disk: TapDisk) -> None:
        self.write, self.write_zeroes = disk.router.write, disk.router.write_zeroes
        self.flush = disk.router.flush
        self.close = disk.detach


def put_over(disk: TapDisk, layers: Layers) -> None:
    """From the next opening on. Raises Refused for a log that is not there."""
    if layers.changes and not os.path.exists(layers.changes):
        raise Refused(errno.EPERM, f"{layers.changes}: no log of changes there")
    disk.session.image_filter = layers.over if layers else None


def _refuse_encrypted(image: Path) -> None:
    with FileStorage(image) as storage:
        try:
            key = read_batmap_fields(read_metadata(storage)).key
        except (UnsupportedImage, CorruptImage, NotAVhd):
            return  # a fixed disk, or what the opening will refuse in better words
    if key is not None:
        raise Refused(errno.EINVAL, f"{image}: encrypted, and no image is decrypted here")


def errno_of(error: VhdtoolError) -> int:
    """The errno that tapdisk would answer, or that says best what happened."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    if isinstance(error, ActivationRefused | LeaseLost | SplitBrain):
        return errno.EBUSY
    if isinstance(error, NotAVhd | CorruptImage | UnsupportedImage | StateError):
        return errno.EINVAL
    return errno.EIO
