"""A minor of a tapdisk: attached, with or without an open image, running or paused."""

import errno
import os
import threading
from dataclasses import dataclass, field, replace

from vhdtool.image.disk.open import disk_size
from vhdtool.nbd.server import NbdServer
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.states import State
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.images import (
    DaemonSettings,
    Filters,
    Refused,
    check_flags,
    filters_for,
    open_disk,
    parse_args,
    set_filters,
)
from vhdtool.vhd.units import size_text

_INHERITED = wire.RDONLY | wire.NO_O_DIRECT
"""Flags of an `open` that apply to its `unpause` too."""
_STOPPED = wire.PAUSED | wire.QUIESCED


@dataclass
class Minor:
    """One minor. `state` is a set of bits, as in the protocol."""

    number: int
    file: int
    """A descriptor of the minor's file, locked as long as it is attached."""
    args: str = ""
    filters: Filters | None = None
    flags: int = 0
    state: int = 0
    disk: TapDisk | None = None
    server: NbdServer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def require_disk(self) -> TapDisk:
        """Returns the open disk. Raises Refused when there is none."""
        if self.disk is None:
            raise Refused(errno.EINVAL, f"minor {self.number} has no open image")
        return self.disk

    def open(self, params: wire.Params, change_log: str, settings: DaemonSettings) -> None:
        """Opens and serves an image. Raises Refused, or what prevents that."""
        if self.disk is not None:
            raise Refused(errno.EALREADY, f"minor {self.number} has an image open")
        filters = filters_for(params, change_log, settings)
        disk = open_disk(params, filters, settings)
        try:
            if self.state & wire.PAUSED:
                disk.pause()  # paused before it was closed: requests wait for `unpause`
            self.server = NbdServer(disk.router, settings.nbd_socket(self.number))
        except BaseException:
            disk.detach()
            raise
        self.disk, self.args, self.flags = disk, params.path, params.flags
        self.filters = filters
        self.state &= ~wire.CLOSED

    def pause(self) -> None:
        """Pauses at any time, as tapdisk does; a second pause changes nothing."""
        if self.disk is not None and self.disk.state is not State.PAUSED:
            self.disk.pause()
        self.state |= _STOPPED | wire.CLOSED

    def resume(self, params: wire.Params, change_log: str, settings: DaemonSettings) -> None:
        """Reopens the image, or another of the same size. Raises Refused, or what prevents that."""
        if not self.state & wire.PAUSED:
            raise Refused(errno.EINVAL, f"minor {self.number} is not paused")
        args = params.path or self.args
        try:
            check_flags(params)
            if self.disk is None and args:
                raise Refused(errno.EMEDIUMTYPE, f"minor {self.number} has no size yet: open it")
            before = self.filters.secondary if self.filters is not None else ""
            merged = replace(params, flags=params.flags | self.flags & _INHERITED)
            filters = filters_for(merged, change_log, settings, before)
            _reopen(self.require_disk(), args, filters)
        except BaseException:
            self.state |= wire.RESUME_FAILED | wire.CLOSED
            raise
        self.args, self.filters = args, filters
        self.state &= ~(_STOPPED | wire.CLOSED | wire.RESUME_FAILED)

    def close(self) -> None:
        """Closes the image, if one is open, even when it raises what prevented the footer."""
        disk, server = self.disk, self.server
        self.disk, self.server, self.args, self.filters = None, None, "", None
        self.state |= wire.CLOSED
        if disk is not None:
            disk.detach(server.stop if server is not None else lambda: None)

    def detach(self) -> None:
        """Raises Refused while an image is open."""
        if self.disk is not None:
            raise Refused(errno.EBUSY, f"minor {self.number} still has an image open")
        os.close(self.file)


def _reopen(disk: TapDisk, args: str, filters: Filters) -> None:
    path, kind = parse_args(args)
    if (size := disk_size(path, kind)) != disk.size:
        raise Refused(
            errno.EMEDIUMTYPE, f"{path}: {size_text(size)}, but the disk has {size_text(disk.size)}"
        )
    before = disk.session.image_filter
    set_filters(disk, filters)
    try:
        if (path, kind) == (disk.path, disk.kind):
            disk.unpause()
        else:
            disk.exchange(path, kind)
    except BaseException:
        disk.session.image_filter = before
        raise
