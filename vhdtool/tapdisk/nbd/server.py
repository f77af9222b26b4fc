"""The NBD server: it accepts clients, and ends them.

Each client has a thread of its own; a guest's disk must never hang on another client, nor on a
defect, which is answered with EIO and logged.
"""

import contextlib
import errno
import logging
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vhdtool.storage import nbd_wire as wire
from vhdtool.tapdisk.listen import TcpPlace, listen_tcp, listen_unix
from vhdtool.tapdisk.nbd.answers import Backend
from vhdtool.tapdisk.nbd.client import Connection

if TYPE_CHECKING:
    from vhdtool.tapdisk.nbd.tls import Tls

__all__ = ["Backend", "NbdServer", "TcpPlace", "listen_unix"]

log = logging.getLogger("nbd")
MOST_CLIENTS = 1024


class NbdServer:
    """Listens on a Unix socket (mode 0600), or a TCP port, until `stop`."""

    def __init__(self, backend: Backend, place: Path | TcpPlace, tls: "Tls | None" = None) -> None:
        """With `tls` no client is served without it."""
        self.backend = backend
        self.tls = tls
        self.place = place
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._socket = listen_unix(place) if isinstance(place, Path) else listen_tcp(place)
        threading.Thread(target=self._accept, name="nbd-accept", daemon=True).start()

    @property
    def uri(self) -> str:
        """What a client connects to."""
        scheme, user = ("nbd", "") if self.tls is None else ("nbds", self.tls.in_uri)
        if isinstance(self.place, Path):
            return f"{scheme}+unix://{user}/?socket={self.place}"
        host, port = self._socket.getsockname()[:2]
        return f"{scheme}://{user}{f'[{host}]' if ':' in host else host}:{port}"

    def _accept(self) -> None:
        while not self._stopped:
            try:
                client, _ = self._socket.accept()
            except OSError as error:
                if self._stopped or error.errno in (errno.EBADF, errno.EINVAL):
                    return
                # No descriptors left, or a client that went at once: others may come.
                log.warning("cannot accept a client: %s", error)
                time.sleep(0.05)
                continue
            self._start(client)

    def _start(self, client: socket.socket) -> None:
        with self._lock:
            if self._stopped or len(self._clients) >= MOST_CLIENTS:
                client.close()
                return
            self._clients.add(client)
        try:
            if not isinstance(self.place, Path):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), name="nbd", daemon=True).start()
        except (OSError, RuntimeError) as error:
            log.warning("cannot serve a client: %s", error)
            self._end(client)

    def _serve(self, client: socket.socket) -> None:
        try:
            connection = Connection(client, self.backend, self.tls)
            if connection.handshake():
                connection.transmission()
            connection.bye()
        except (OSError, EOFError):
            # The client has gone, or did not say what it wants.
            pass
        except wire.WireError as error:
            log.warning("client dropped: %s", error)
        except Exception:
            log.exception("defect; client dropped")
        finally:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        with self._lock:
            self._clients.discard(client)
        client.close()

    def stop(self) -> None:
        """Ends all connections and removes the socket."""
        with self._lock:
            self._stopped = True
            clients = list(self._clients)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        if isinstance(self.place, Path):
            self.place.unlink(missing_ok=True)
