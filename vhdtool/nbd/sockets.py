"""Listening sockets: Unix ones that only their owner reaches, TCP ones on a named address."""

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from vhdtool.errors import VhdtoolError


@dataclass(frozen=True)
class TcpPlace:
    """An address to listen on; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def nbd_uri(place: Path | TcpPlace, scheme: str = "nbd", user: str = "") -> str:
    """The URI of an NBD server, percent-encoded, whatever bytes the socket's path is made of.

    `user` is encoded already, with its "@".
    """
    if isinstance(place, Path):
        return f"{scheme}+unix://{user}/?socket={quote_from_bytes(os.fsencode(place))}"
    host = place.host
    if ":" in host:
        # RFC 6874: the "%" before a zone is encoded too.
        host = f"[{host.replace('%', '%25')}]"
    return f"{scheme}://{user}{host}:{place.port}"


def keep_alive(client: socket.socket) -> None:
    """A TCP peer that has vanished is noticed two minutes after its last sign of life."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner can reach; a stale one is replaced.

    Raises VhdtoolError when something else is there, or a process still listens.
    """
    _make_room(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise VhdtoolError(f"{path}: cannot listen: {error}") from None
    finally:
        os.umask(old)
    return listener


def _make_room(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise VhdtoolError(f"{path}: cannot listen: {error}") from None
    if not stat.S_ISSOCK(mode):
        raise VhdtoolError(f"{path}: exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise VhdtoolError(f"{path}: in use by another process; end it first")


def listen_tcp(place: TcpPlace) -> socket.socket:
    """A listening TCP socket. Raises VhdtoolError when the address cannot be used."""
    if not 0 <= place.port < 1 << 16:
        # getaddrinfo would take it modulo 65536.
        raise VhdtoolError(f"{place}: cannot listen: a port is below 65536")
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise VhdtoolError(f"{place}: cannot listen: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise VhdtoolError(f"{place}: cannot listen: {error}") from None
    return listener
