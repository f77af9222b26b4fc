"""Serves one image to NBD clients, from activation to a clean close."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vhdtool.errors import LeaseLost, UsageError
from vhdtool.image.disk.base import OpenDisk
from vhdtool.image.disk.open import disk_size, kind_of
from vhdtool.leases.factory import lease_opener
from vhdtool.leases.owner import Owner
from vhdtool.nbd import fast_path
from vhdtool.nbd.server import NbdServer, most_clients
from vhdtool.nbd.sockets import PassedSocket, TcpAddress
from vhdtool.storage import StorageError
from vhdtool.storage.paths import is_lun
from vhdtool.tapdisk.access import ImageOpener, Settings
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.ending import Ending
from vhdtool.tapdisk.events import Events, log_event, log_status
from vhdtool.tapdisk.service.manager import Announcement

if TYPE_CHECKING:
    from vhdtool.nbd.tls.context import Tls

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Service:
    """What is served, and how."""

    image: Path
    address: Path | TcpAddress | PassedSocket
    host: str
    kind: str | None = None
    """The image's format, one of KINDS of image.disk.open; None: as detected."""
    guard: bool = True
    direct: bool = True
    follow: bool = True
    """Whether the image may be a symbolic link."""
    force_epoch: int | None = None
    lease: str | None = None
    """The lease backend, as leases.factory reads it; None: the epoch record alone."""
    record: Path | None = None
    """The epoch record; None: the one beside the image."""
    read_only: bool = False
    """Any number of hosts may read; no lease is taken."""
    overlay: str | None = None
    """With `read_only`: clients may write, to a temporary file in this directory."""
    run: str | None = None
    """A shell command whose end is the server's end."""
    exit_last: bool = False
    """Whether the server ends when its last client has left."""
    max_clients: int | None = None
    ready_fd: int | None = None
    pid_file: Path | None = None
    events: TextIO | None = None
    metrics: TcpAddress | None = None
    """The address at which Prometheus asks for metrics."""
    tls: "Tls | None" = None
    """None: clients are served in clear; else with TLS only."""


def serve(service: Service, ready: Callable[[str], None], ended: Ending) -> int:
    """Serves until `ended`, then closes the image with its footer and releases the lease.

    `ready` is called with the URI once clients can connect. Returns the exit code of the command
    that it runs, else 0. Raises ActivationRefused while another process has the image, LeaseLost
    when we lost it (it is not closed then), or what prevents opening, serving or closing it.
    """
    if (most := service.max_clients) is not None and most > most_clients():
        raise UsageError(
            f"--max-clients {most}: there are descriptors for {most_clients()}; see `ulimit -n`"
        )
    announcement = Announcement(service.ready_fd, service.pid_file)
    disk = _activated(service)
    disconnect: Callable[[], None] = lambda: None  # noqa: E731
    code = 0
    try:
        server = NbdServer(
            disk.router,
            service.address,
            service.tls,
            most=most,
            all_left=ended.set if service.exit_last else lambda: None,
        )
        disconnect = server.stop
        if service.metrics is not None:
            _publish(service.metrics, disk)
        announcement.ready(server.uri)
        ready(server.uri)
        code = _until_end(service, server, disk, ended)
        lost = disk.state == "fenced"
    finally:
        announcement.ending()
        try:
            disk.detach(disconnect)
        finally:
            announcement.close()
    if lost:
        raise LeaseLost(
            f"{service.image}: its lease was lost while it was served, so it is not closed; "
            "find out who has it now, and what `vhdtool check --unclean` says"
        )
    return code


def _until_end(service: Service, server: NbdServer, disk: TapDisk, ended: Ending) -> int:
    """Waits for the end; returns the exit code."""
    report = lambda: log_status(disk.status())  # noqa: E731
    if service.run is None:
        ended.wait(report)
        return 0
    # Imported late: rarely needed.
    from vhdtool.tapdisk.service.command import Command

    command = Command(service.run, server.uri, server.address, ended)
    try:
        ended.wait(report)
    finally:
        code = command.stop()
    return code


def _publish(address: TcpAddress, disk: TapDisk) -> None:
    # Rarely needed, and an HTTP server is a tenth of all modules.
    from vhdtool.tapdisk.service.metrics_http import MetricsServer, prometheus

    MetricsServer(address, lambda: prometheus(disk.status(), disk.router.latency))


def _overlay(folder: str) -> Callable[[OpenDisk], OpenDisk]:
    # Imported late: rarely needed.
    from vhdtool.image.disk.overlay import Overlay

    return lambda image: Overlay(image, folder)


def _require_no_link(image: Path) -> None:
    """Checks before the image is opened; opening checks again."""
    if image.is_symlink():
        raise UsageError(f"{image}: is a symbolic link, which --no-follow does not allow")


def _require_what_a_lun_needs(service: Service) -> None:
    # Imported late: files do not need it.
    from vhdtool.storage.scsi import Lun

    lun = Lun.parse(os.fspath(service.image))
    if service.read_only:
        raise UsageError(
            f"{lun}: --read-only and --snapshot are for files and devices, as a LUN has no lock "
            "that keeps writers out; serve it with --lease scsi:... and --record"
        )
    if service.record is None:
        raise UsageError(
            f"{lun}: a LUN has no file beside it for the epoch record: name one that all hosts "
            "see, or with --lease scsi:... any file, with --record"
        )


def _activated(service: Service) -> TapDisk:
    if is_lun(service.image):
        _require_what_a_lun_needs(service)
    elif not service.image.parent.is_dir():
        raise StorageError(str(service.image), "open it", 2)
    kind = service.kind or kind_of(service.image)
    if not service.follow:
        _require_no_link(service.image)
    size = disk_size(service.image, kind)
    if not size:
        raise UsageError(f"{service.image}: is empty; there is nothing to serve")
    owner = Owner.here(service.host)
    opener = lease_opener(service.lease, owner, service.guard, service.read_only, temporary=True)
    out = service.events or open(os.devnull, "w")  # noqa: SIM115 - ends with the process
    events = Events(service.host, out)
    if log.isEnabledFor(logging.INFO):
        events.listen(log_event)
    disk = TapDisk(
        Settings(
            guard=service.guard,
            open_storage=ImageOpener(
                service.direct, service.follow, lease_elsewhere=service.lease is not None
            ),
            open_lease=opener,
            emit=events.emit,
            fast_path_gate=fast_path.new_gate,
            read_only=service.read_only,
            overlay=service.overlay is not None,
        )
    )
    if service.overlay is not None:
        disk.session.image_filter = _overlay(service.overlay)
    disk.attach(service.image, size, kind, service.record)
    disk.start(service.force_epoch)
    return disk
