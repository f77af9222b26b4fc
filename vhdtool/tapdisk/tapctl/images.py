"""The images of a tapdisk: how a `type:/path` argument is read, opened and filtered."""

import errno
import fcntl
import logging
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
from vhdtool.image.disk.base import OpenDisk
from vhdtool.image.disk.open import QCOW2, RAW, VHD, disk_size
from vhdtool.image.edit.batmap_fields import read_batmap_fields
from vhdtool.image.metadata.read import read_metadata
from vhdtool.leases.factory import lease_opener
from vhdtool.leases.owner import Owner
from vhdtool.nbd import fast_path
from vhdtool.storage import FileStorage, StorageError
from vhdtool.tapdisk.access import ImageOpener, Settings
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.change_log import ChangeLog
from vhdtool.tapdisk.tapctl.filters import Mirror, MirrorTarget, NbdTarget
from vhdtool.vhd.units import size_text

log = logging.getLogger("tap-ctl")
TYPES = {"vhd": VHD, "aio": RAW, "qcow2": QCOW2}
"""Image type -> format of the file. tapdisk has no driver for the last one."""
UNSERVED_TYPES = frozenset(
    "sync vmdk vhdsync ram qcow bc vhdi log remus lc llp lle valve nbd".split()  # noqa: SIM905
)
"""Types that tapdisk knows by name (often without a driver) and that are not served here."""
LONGEST_TYPE = 31
NO_MIRROR = "null"
"""As a secondary image: ends the mirror."""
_UNSUPPORTED = {
    wire.SHARED: "no image is shared with another writer here",
    wire.ADD_CACHE: "no block cache is kept here",
    wire.VHD_INDEX: "no index of VHDs is kept here",
}


class Refused(VhdtoolError):
    """Raised for an operation whose reply is an errno."""

    errno: int

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.errno = number


@dataclass(frozen=True)
class DaemonSettings:
    """What all disks of a process share."""

    guard: bool
    owner: Owner
    emit: Callable[..., Any]
    run_dir: Path

    def minor_file(self, minor: int) -> Path:
        return self.run_dir / "tapdisk" / f"tapdisk-{minor}"

    def nbd_socket(self, minor: int) -> Path:
        return self.run_dir / f"nbd{os.getpid()}.{minor}"


def lock_minor_file(path: Path) -> int:
    """Locks the file of a minor against `free` and other tapdisks; returns the descriptor.

    Raises Refused.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Refused(errno.EPERM, f"{path}: allocate the minor first") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Refused(errno.EBUSY, f"{path}: attached to another tapdisk") from None
    return fd


def parse_args(args: str) -> tuple[Path, str]:
    """Returns (path, format) of `vhd:/path` or `aio:/path`. Raises Refused with tapdisk's errno."""
    kind, colon, path = args.partition(":")
    if not colon:
        raise Refused(errno.EINVAL, f"{args}: say vhd:/path or aio:/path")
    if len(kind) > LONGEST_TYPE:
        raise Refused(errno.ENAMETOOLONG, f"{kind}: longer than any type")
    if kind in UNSERVED_TYPES:
        raise Refused(errno.ENOSYS, f"{kind}: not served here; say vhd:/path or aio:/path")
    if kind not in TYPES:
        raise Refused(errno.ENOENT, f"{kind}: no such type; say vhd:/path or aio:/path")
    if not path:
        raise Refused(errno.ENOENT, f"{args}: names no file")
    if Path(path).is_dir():
        raise Refused(errno.EISDIR, f"{path}: a directory")
    return Path(path), TYPES[kind]


def check_flags(params: wire.Params) -> None:
    """Raises Refused for a flag whose promise would not be kept.

    A read cache (ADD_LCACHE) is silently not made: it changes no reply. STANDBY qualifies a
    secondary image, and is ignored without one.
    """
    flags = params.flags
    if flags & wire.SECONDARY and flags & wire.STANDBY and params.secondary != NO_MIRROR:
        raise Refused(errno.ENOSYS, "no image takes over here when there is no space (-s -2)")
    for flag, why in _UNSUPPORTED.items():
        if flags & flag:
            raise Refused(errno.ENOSYS, why)
    if flags & wire.REUSE_PRT:
        raise Refused(errno.ENOENT, f"minor {params.parent}: no device whose parents to share")
    if flags & wire.ENCRYPTED:
        raise Refused(errno.EINVAL, "no image is decrypted here (-E)")


def open_disk(params: wire.Params, filters: "Filters | None", settings: DaemonSettings) -> TapDisk:
    """Opens the image that `params` name, with the lease if guarded. Raises what prevents that."""
    check_flags(params)
    path, kind = parse_args(params.path)
    direct = not params.flags & wire.NO_O_DIRECT
    read_only = bool(params.flags & wire.RDONLY)
    if kind == VHD:
        _refuse_encrypted(path)
    disk = TapDisk(
        Settings(
            guard=settings.guard,
            open_storage=ImageOpener(direct),
            open_lease=lease_opener(None, settings.owner, settings.guard, read_only),
            emit=settings.emit,
            fast_path_gate=fast_path.new_gate,
            read_only=read_only,
        )
    )
    if filters is not None:
        set_filters(disk, filters)
    disk.attach(path, disk_size(path, kind), kind)
    disk.start()
    return disk


class Filters:
    """The filters of one minor, put over its image each time that it is opened."""

    def __init__(
        self, change_log: str, secondary: str, open_target: Callable[[str, int], MirrorTarget]
    ) -> None:
        """`open_target(args, size)` opens any secondary image but an NBD export."""
        self.change_log = change_log
        self.secondary = secondary
        self.mirror_failed = False
        self._open_target = open_target

    def __bool__(self) -> bool:
        return bool(self.change_log or self.secondary)

    def wrap(self, image: OpenDisk) -> OpenDisk:
        """Raises what prevents the mirror's image, or the log, from being opened."""
        if self.secondary:
            image = self._mirrored(image)
        return ChangeLog(image, self.change_log) if self.change_log else image

    def _mirrored(self, image: OpenDisk) -> OpenDisk:
        self.mirror_failed = False
        if not self.secondary.startswith("nbd:"):
            return Mirror(image, self._open_target(self.secondary, image.size))
        socket = Path(self.secondary.removeprefix("nbd:"))
        try:
            return Mirror(image, NbdTarget(socket, image.size), self._mark_failed)
        except StorageError as error:
            if error.errno == errno.EINVAL:
                raise
            # As in tapdisk the disk goes on without its mirror, and `stats` says so.
            log.error("no mirror: %s", error)
            self._mark_failed()
            return image

    def _mark_failed(self) -> None:
        self.mirror_failed = True


def filters_for(
    params: wire.Params, change_log: str, settings: DaemonSettings, secondary: str = ""
) -> Filters:
    """Returns the filters that a request asks for; `secondary` is the mirror's image so far."""
    if params.flags & wire.SECONDARY:
        secondary = "" if params.secondary == NO_MIRROR else params.secondary
    flags = params.flags & (wire.RDONLY | wire.NO_O_DIRECT)

    def open_target(args: str, size: int) -> MirrorTarget:
        disk = open_disk(wire.Params(flags, path=args), None, settings)
        if disk.size != size:
            disk.detach()
            raise Refused(
                errno.EINVAL, f"{args}: {size_text(disk.size)}, the disk has {size_text(size)}"
            )
        return DiskTarget(disk)

    return Filters(change_log, secondary, open_target)


class DiskTarget:
    """A mirror's second image as a disk of its own, with its own lease."""

    def __init__(self, disk: TapDisk) -> None:
        self.write, self.write_zeroes = disk.router.write, disk.router.write_zeroes
        self.flush = disk.router.flush
        self.close = disk.detach


def set_filters(disk: TapDisk, filters: Filters) -> None:
    """Applies from the next opening on. Raises Refused for a change log that does not exist."""
    if filters.change_log and not os.path.exists(filters.change_log):
        raise Refused(errno.EPERM, f"{filters.change_log}: no log of changes there")
    disk.session.image_filter = filters.wrap if filters else None


def _refuse_encrypted(image: Path) -> None:
    with FileStorage(image) as storage:
        try:
            key = read_batmap_fields(read_metadata(storage)).key
        except (UnsupportedImage, CorruptImage, NotAVhd):
            return  # a fixed disk, or an image that opening it refuses with a better message
    if key is not None:
        raise Refused(errno.EINVAL, f"{image}: encrypted, and no image is decrypted here")


def errno_of(error: VhdtoolError) -> int:
    """Returns the errno that tapdisk would send, or the one that describes the error best."""
    if isinstance(error, StorageError | Refused):
        return error.errno
    if isinstance(error, ActivationRefused | LeaseLost | SplitBrain):
        return errno.EBUSY
    if isinstance(error, NotAVhd | CorruptImage | UnsupportedImage | StateError):
        return errno.EINVAL
    return errno.EIO
