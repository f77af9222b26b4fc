"""The NBD server: the socket that it listens on, and how many clients it serves at once.

Each client has a thread of its own, so that no client waits for another. A defect fails one request
with EIO and is logged.
"""

import contextlib
import logging
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.connection import Connection
from vhdtool.nbd.sockets import TcpAddress, keep_alive, listen_tcp, listen_unix, nbd_uri

if TYPE_CHECKING:
    from vhdtool.nbd.tls.context import Tls

log = logging.getLogger("nbd")
MOST_CLIENTS = 1024
HANDSHAKE_PATIENCE = 30.0
"""Seconds from a client's connect until it must have chosen the export, TLS included."""
_OTHER_DESCRIPTORS = 64
"""Descriptors that are left to images, the control socket and the rest of the process."""


class NbdServer:
    """Listens on a Unix socket (mode 0600), or a TCP port, until `stop`."""

    def __init__(
        self, backend: Backend, address: Path | TcpAddress, tls: "Tls | None" = None
    ) -> None:
        """With `tls` no client is served without it."""
        self.backend = backend
        self.tls = tls
        self.address = address
        unix = isinstance(address, Path)
        listener = listen_unix(address) if isinstance(address, Path) else listen_tcp(address)
        self.bound_to = listener.getsockname()
        """What the kernel says: with port 0 the port that it chose."""
        self._acceptor = Acceptor(
            listener,
            self._serve,
            name="nbd",
            most=most_clients(),
            patience=HANDSHAKE_PATIENCE,
            # Over TCP anyone may connect, and must not be able to end another's connection.
            end_idle=unix,
        )

    @property
    def uri(self) -> str:
        """What a client connects to."""
        address = self.address
        if isinstance(address, TcpAddress):
            address = TcpAddress(*self.bound_to[:2])
        return nbd_uri(address) if self.tls is None else nbd_uri(address, "nbds", self.tls.in_uri)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return self._acceptor.clients

    @property
    def idle_clients(self) -> int:
        """How many of them ask for nothing now."""
        return self._acceptor.idle_clients

    def _serve(self, peer: Peer) -> None:
        client = peer.socket
        if not isinstance(self.address, Path):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(client)
        connection = Connection(client, self.backend, self.tls)
        try:
            if connection.handshake():
                peer.idle_since = connection.idle_since
                peer.stalled_since = connection.stalled_since
                peer.settled = True
                connection.transmission()
            connection.end_tls()
        except wire.WireError as error:
            if not peer.ended:
                log.warning("client dropped: %s", error)

    def stop(self) -> None:
        """Ends all connections and removes the socket."""
        self._acceptor.stop()
        if isinstance(self.address, Path):
            with contextlib.suppress(OSError):
                self.address.unlink()


def most_clients() -> int:
    """Returns how many clients are served at once.

    Each takes two descriptors, its socket and an event of its I/O queue.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CLIENTS
    return min(MOST_CLIENTS, max(8, (soft - _OTHER_DESCRIPTORS) // 2))
