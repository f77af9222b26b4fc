"""The NBD server: the socket that it listens on, and how many clients it serves at once.

Each client has a thread of its own, so that no client waits for another. A defect fails one request
with EIO and is logged.
"""

import contextlib
import logging
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.connection import Connection
from vhdtool.nbd.sockets import Address, PassedSocket, keep_alive, listen, nbd_uri, peer_of

if TYPE_CHECKING:
    from vhdtool.nbd.tls.context import Tls

log = logging.getLogger("nbd")
MOST_CLIENTS = 1024
HANDSHAKE_PATIENCE = 30.0
"""Seconds from a client's connect until it must have chosen the export, TLS included."""
LEAVE_PATIENCE = 1.0
"""Seconds that a client waits for another one to leave before it is refused."""
_OTHER_DESCRIPTORS = 64
"""Descriptors that are left to images, the control socket and the rest of the process."""


class NbdServer:
    """Listens on a Unix socket (mode 0600), a TCP port or a passed socket, until `stop`."""

    def __init__(
        self,
        backend: Backend,
        address: Address | PassedSocket,
        tls: "Tls | None" = None,
        *,
        most: int | None = None,
        all_left: Callable[[], None] = lambda: None,
    ) -> None:
        """With `tls` no client is served without it.

        `most`: clients that have the export at once; further ones are refused. `all_left` is
        called each time when the last of those clients has left.
        """
        self.backend = backend
        self.tls = tls
        self._admissions = _Admissions(most, all_left)
        listener, self.address = listen(address)
        unix = isinstance(self.address, Path)
        self._owns_socket = unix and not isinstance(address, PassedSocket)
        self._acceptor = Acceptor(
            listener,
            self._serve,
            name="nbd",
            most=most_clients(),
            patience=HANDSHAKE_PATIENCE,
            # Over TCP anyone may connect, and must not be able to end another's connection.
            end_idle=unix and most is None,
        )

    @property
    def uri(self) -> str:
        """What a client connects to."""
        if self.tls is None:
            return nbd_uri(self.address)
        return nbd_uri(self.address, "nbds", self.tls.in_uri)

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
        connection = Connection(
            client, self.backend, self.tls, lambda: self._admissions.refusal(peer)
        )
        name = peer_of(client) if log.isEnabledFor(logging.INFO) else ""
        log.info("%s: connected", name)
        try:
            if connection.handshake():
                peer.idle_since = connection.idle_since
                peer.stalled_since = connection.stalled_since
                peer.settled = True
                log.info("%s: has the export", name)
                connection.transmission()
            connection.end_tls()
        except wire.WireError as error:
            if not peer.ended:
                log.warning("client dropped: %s", error)
        finally:
            log.info("%s: disconnected", name)
            self._admissions.leave(peer)

    def stop(self) -> None:
        """Ends all connections and removes the socket, unless it was passed."""
        self._acceptor.stop()
        if self._owns_socket and isinstance(self.address, Path):
            with contextlib.suppress(OSError):
                self.address.unlink()


class _Admissions:
    """The clients that have the export."""

    def __init__(self, most: int | None, all_left: Callable[[], None]) -> None:
        self._most, self._all_left = most, all_left
        self._admitted: set[Peer] = set()
        self._changed = threading.Condition()

    def refusal(self, peer: Peer) -> str:
        """Admits a client and returns "", or returns why it is refused.

        It waits a moment for another one to leave: one tool after another connects sooner than the
        end of the connection before is noticed.
        """
        with self._changed:
            most = self._most
            if most is not None and peer not in self._admitted:
                admitted = self._admitted
                if not self._changed.wait_for(lambda: len(admitted) < most, LEAVE_PATIENCE):
                    log.info("a client is refused: there are %d clients already", most)
                    return f"there are {most} clients already, and no more are served"
            self._admitted.add(peer)
        return ""

    def leave(self, peer: Peer) -> None:
        with self._changed:
            if peer not in self._admitted:
                return
            self._admitted.remove(peer)
            self._changed.notify()
            last = not self._admitted
        if last:
            self._all_left()


def most_clients() -> int:
    """Returns how many clients are served at once.

    Each takes two descriptors, its socket and an event of its I/O queue.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CLIENTS
    return min(MOST_CLIENTS, max(8, (soft - _OTHER_DESCRIPTORS) // 2))
