"""What the process that started a server passes to it, and is told by it.

Source: sd_listen_fds(3) and sd_notify(3).
"""

import logging
import os
import socket
from pathlib import Path

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.nbd.sockets import PassedSocket

log = logging.getLogger("serve")
_FIRST_FD = 3
_NOTIFY_TIMEOUT = 5.0


def passed_socket() -> PassedSocket | None:
    """Returns the listening socket that systemd or another process passes; None without one.

    Raises UsageError where it passes more, or something else.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS")
    # They are for this process, and not for its children.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise UsageError(f"LISTEN_FDS is {count}: pass one socket")
    try:
        listener = socket.socket(fileno=_FIRST_FD)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        known = listener.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        listener.detach()
    except OSError:
        listens, known = 0, False
    if not (listens and known):
        raise UsageError("descriptor 3 of LISTEN_FDS is no listening Unix or TCP socket")
    os.set_inheritable(_FIRST_FD, False)
    return PassedSocket(_FIRST_FD)


def notify(text: str) -> None:
    """Sends lines like READY=1 to the service manager, where there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_NOTIFY_TIMEOUT)
            sender.sendto(text.encode(errors="surrogateescape"), address)
    except OSError as error:
        log.warning("cannot notify the service manager: %s", error.strerror)


class Announcement:
    """Tells other processes when a server is ready, and when it ends."""

    def __init__(self, ready_fd: int | None = None, pid_file: Path | None = None) -> None:
        """Raises UsageError for a descriptor that is not open."""
        self._ready_fd, self._pid_file = ready_fd, pid_file
        self._wrote_pid = False
        if ready_fd is not None:
            try:
                os.set_inheritable(ready_fd, False)
            except OSError:
                raise UsageError(f"--ready-fd {ready_fd}: is not open") from None

    def ready(self, uri: str) -> None:
        """Clients can connect. Raises VhdtoolError where the pid file cannot be written."""
        if self._pid_file is not None:
            self._write_pid(self._pid_file)
        fd, self._ready_fd = self._ready_fd, None
        if fd is not None:
            try:
                os.write(fd, uri.encode() + b"\n")
            except OSError as error:
                log.warning("--ready-fd %d: %s", fd, error.strerror)
            os.close(fd)
        notify(f"READY=1\nSTATUS=serving {uri}")

    def _write_pid(self, path: Path) -> None:
        # Under another name first: nobody may read half a number.
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            try:
                part.write_text(f"{os.getpid()}\n")
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise VhdtoolError(f"--pid-file {path}: {error.strerror}") from None
        self._wrote_pid = True

    def ending(self) -> None:
        """Clients are about to be disconnected."""
        notify("STOPPING=1")

    def close(self) -> None:
        """The server has ended: removes the pid file, unless another server has replaced it."""
        path = self._pid_file
        if path is not None and self._wrote_pid:
            try:
                if path.read_text() == f"{os.getpid()}\n":
                    path.unlink()
            except OSError:
                # Somebody has removed it.
                pass
