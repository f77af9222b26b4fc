"""Listening sockets: Unix ones that only their owner reaches, TCP ones on a named address."""

import os
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from vhdtool.errors import VhdtoolError


@dataclass(frozen=True)
class TcpAddress:
    """An address to listen on; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class PassedSocket:
    """A socket on which another process, such as systemd, has begun to listen."""

    fd: int


Address = Path | TcpAddress
"""Where clients connect."""


def listen(address: Address | PassedSocket) -> tuple[socket.socket, Address]:
    """Returns a listening socket, and the address that clients connect to: never port 0.

    Raises VhdtoolError.
    """
    if isinstance(address, Path):
        return listen_unix(address), address
    if isinstance(address, TcpAddress):
        listener = listen_tcp(address)
        return listener, TcpAddress(*listener.getsockname()[:2])
    listener = socket.socket(fileno=address.fd)
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return listener, Path(os.fsdecode(name))
    return listener, TcpAddress(*name[:2])


def peer_of(client: socket.socket) -> str:
    """Describes who has connected: an address, or a process of this host."""
    try:
        if client.family != socket.AF_UNIX:
            return str(TcpAddress(*client.getpeername()[:2]))
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return "a client that has disconnected"
    return f"pid {int.from_bytes(credentials[:4], sys.byteorder)}"


def nbd_uri(address: Path | TcpAddress, scheme: str = "nbd", user: str = "") -> str:
    """Returns the URI of an NBD server, percent-encoded, whatever bytes are in the socket's path.

    `user` is encoded already, with its "@".
    """
    if isinstance(address, Path):
        return f"{scheme}+unix://{user}/?socket={quote_from_bytes(os.fsencode(address))}"
    host = address.host
    if ":" in host:
        # RFC 6874: the "%" before a zone is encoded too.
        host = f"[{host.replace('%', '%25')}]"
    return f"{scheme}://{user}{host}:{address.port}"


def keep_alive(client: socket.socket) -> None:
    """Ends the connection of a TCP peer that has vanished, after two minutes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)


def listen_unix(path: Path) -> socket.socket:
    """Returns a listening Unix socket that only its owner can reach; replaces a stale one.

    Raises VhdtoolError when something else is there, or a process still listens.
    """
    _remove_stale(path)
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


def _remove_stale(path: Path) -> None:
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


def listen_tcp(address: TcpAddress) -> socket.socket:
    """Returns a listening TCP socket. Raises VhdtoolError when the address cannot be used."""
    if not 0 <= address.port < 1 << 16:
        # getaddrinfo would take it modulo 65536.
        raise VhdtoolError(f"{address}: cannot listen: a port is below 65536")
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, resolved = found[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise VhdtoolError(f"{address}: cannot listen: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise VhdtoolError(f"{address}: cannot listen: {error}") from None
    return listener
