"""A minor of a tapdisk: attached, with or without an open image, running or paused."""

import errno
import os
import threading
from dataclasses import dataclass, field, replace

from vhdtool.image.disk.open import disk_size
from vhdtool.nbd.server import NbdServer
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.filters import Layers
from vhdtool.tapdisk.tapctl.images import (
    Opening,
    Refused,
    check_flags,
    image_of,
    layers_of,
    put_over,
    started,
)

KEPT = wire.RDONLY | wire.NO_O_DIRECT
"""Flags of an `open` that its `unpause` keeps."""
_STOPPED = wire.PAUSED | wire.QUIESCED


@dataclass
class Vbd:
    """One minor. `bits` are its state as it goes over the wire."""

    minor: int
    marker: int
    """A descriptor of the minor's file, locked as long as it is attached."""
    args: str = ""
    layers: Layers | None = None
    flags: int = 0
    bits: int = 0
    disk: TapDisk | None = None
    server: NbdServer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open_disk(self) -> TapDisk:
        if self.disk is None:
            raise Refused(errno.EINVAL, f"minor {self.minor} has no open image")
        return self.disk

    def open(self, params: wire.Params, log: str, how: Opening) -> None:
        """Raises Refused, or what keeps the image from being opened."""
        if self.disk is not None:
            raise Refused(errno.EALREADY, f"minor {self.minor} has an image open")
        layers = layers_of(params, log, how)
        disk = started(params, layers, how)
        try:
            if self.bits & wire.PAUSED:
                disk.pause()  # paused before it was closed: requests wait for `unpause`
            self.server = NbdServer(disk.router, how.nbd(self.minor))
        except BaseException:
            disk.detach()
            raise
        self.disk, self.args, self.flags = disk, params.path, params.flags
        self.layers = layers
        self.bits &= ~wire.CLOSED

    def pause(self) -> None:
        """Possible at any time, as in tapdisk; the second one changes nothing."""
        if self.disk is not None and self.disk.state != "paused":
            self.disk.pause()
        self.bits |= _STOPPED | wire.CLOSED

    def resume(self, params: wire.Params, log: str, how: Opening) -> None:
        """Goes on with its image, or with another one of the same size. Raises Refused, ..."""
        if not self.bits & wire.PAUSED:
            raise Refused(errno.EINVAL, f"minor {self.minor} is not paused")
        args = params.path or self.args
        try:
            check_flags(params)
            if self.disk is None and args:
                raise Refused(errno.EMEDIUMTYPE, f"minor {self.minor} has no size yet: open it")
            before = self.layers.secondary if self.layers is not None else ""
            said = replace(params, flags=params.flags | self.flags & KEPT)
            layers = layers_of(said, log, how, before)
            _reopen(self.open_disk(), args, layers)
        except BaseException:
            self.bits |= wire.RESUME_FAILED | wire.CLOSED
            raise
        self.args, self.layers = args, layers
        self.bits &= ~(_STOPPED | wire.CLOSED | wire.RESUME_FAILED)

    def close(self) -> None:
        """Whatever is open. Raises what kept it from ending with a footer; it is closed anyway."""
        disk, server = self.disk, self.server
        self.disk, self.server, self.args, self.layers = None, None, "", None
        self.bits |= wire.CLOSED
        if disk is not None:
            disk.detach(server.stop if server is not None else lambda: None)

    def detach(self) -> None:
        """Raises Refused while an image is open."""
        if self.disk is not None:
            raise Refused(errno.EBUSY, f"minor {self.minor} still has an image open")
        os.close(self.marker)


def _reopen(disk: TapDisk, args: str, layers: Layers) -> None:
    path, kind = image_of(args)
    if (size := disk_size(path, kind)) != disk.size:
        raise Refused(errno.EMEDIUMTYPE, f"{path}: {size} bytes, but the disk has {disk.size}")
    before = disk.session.image_filter
    put_over(disk, layers)
    try:
        if (path, kind) == (disk.path, disk.kind):
            disk.unpause()
        else:
            disk.exchange(path, kind)
    except BaseException:
        disk.session.image_filter = before
        raise
