"""Hands a client's plain reads and writes to the fast path in C, and the others to Python.

Where the C part was not built, or with VHDTOOL_FAST_PATH=off, Python serves all requests.
"""

import importlib
import logging
import os
import socket
from typing import Self

from vhdtool.errors import VhdtoolError
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.backend import FastPathGate, Grant, NoFastPath
from vhdtool.nbd.buffers import SHARED, Stream
from vhdtool.nbd.metrics import BUCKETS
from vhdtool.nbd.plain_path import PlainPath

log = logging.getLogger("nbd")
_SWITCHES = ("VHDTOOL_FAST_PATH", "VHDTOOL_STRAIGHT")
"""Environment variables that switch it off; the second is the name of earlier versions."""


def _load() -> bool:
    """Whether the fast path was built, and is not switched off."""
    if any(os.environ.get(name) == "off" for name in _SWITCHES):
        return False
    try:
        importlib.import_module("vhdtool.nbd._fast_path")
    except ModuleNotFoundError:
        return False
    except ImportError as error:
        # It was built for another machine.
        log.warning("%s; Python serves all requests", error)
        return False
    return True


available = _load()
"""Whether this process has the fast path."""
if available:
    from vhdtool.nbd import _fast_path as c

    c.set_memory_limit(SHARED)


def new_gate() -> FastPathGate:
    """A disk's gate in the fast path, where there is one."""
    return c.Gate() if available else NoFastPath()


class FastPathSession:
    """One client's connection, handed to the fast path and taken back until the client has gone."""

    def __init__(self, plain: PlainPath, session: "c.Session") -> None:
        self._plain, self._backend = plain, plain.backend
        self._session = session
        self._grant: Grant | None = None

    @classmethod
    def open(cls, plain: PlainPath, client: Stream) -> Self | None:
        """Returns None where Python must serve all: no fast path, no memory, or TLS."""
        gate = plain.backend.fast_path_gate
        if not (available and isinstance(gate, c.Gate) and isinstance(client, socket.socket)):
            return None
        structured, inbox = plain.handler.structured, plain.received.buffer
        try:
            session = c.Session(client.fileno(), inbox, plain.counters, gate, structured, BUCKETS)
        except MemoryError:
            return None
        return cls(plain, session)

    def serve(self) -> None:
        """Serves until the client has gone."""
        session, received = self._session, self._plain.received
        while True:
            grant = self._backend.grant()
            if grant is not None:
                self._plain.send()
                self._use(grant)
                why, start, end = session.serve(*received.bounds)
                received.bounds = start, end
                if (measured := session.take_latencies()) is not None:
                    self._plain.latency.add_many(*measured)
                if why == c.ALLOCATE:
                    if self._allocate(grant):
                        continue
                    why = session.drain()
                while why == c.RETRY:
                    why = self._retry()
                if why == c.DISCONNECTED:
                    return
            if not self._plain.serve_next():
                return

    def _use(self, grant: Grant) -> None:
        if grant == self._grant:
            return
        layout = grant.layout
        self._session.use(
            fd=layout.fd,
            size=layout.size,
            generation=grant.generation,
            direct=layout.direct,
            writable=grant.writable,
            block_bytes=layout.block_bytes,
            bitmap_bytes=layout.bitmap_bytes,
            bat=layout.bat,
            full=layout.full,
            zeros=layout.zeros,
            whole=layout.whole,
        )
        self._grant = grant

    def _allocate(self, grant: Grant) -> bool:
        """Returns False where it fails; Python then serves the request, and so reports why."""
        session = self._session
        try:
            self._backend.allocate(session.absent_block, grant.generation, session.in_flight)
        except (OSError, VhdtoolError):
            return False
        return True

    def _retry(self) -> int:
        """Serves a request that failed in the fast path, and so reports why it does."""
        session = self._session
        command, cookie, offset, length, data = session.failed_request()
        request = wire.Request(command, 0, cookie, offset, length)
        self._plain.serve(request, data if command == wire.CMD_WRITE else None)
        self._plain.send()
        session.replied()
        return session.drain()

    @property
    def idle_since(self) -> float:
        """time.monotonic() since when the client is idle; 0 while it is not."""
        return self._session.idle_since

    @property
    def stalled_since(self) -> float:
        """time.monotonic() since when a request or reply has stopped half way; or 0."""
        return self._session.stalled_since

    def close(self) -> None:
        """Ends the requests in flight."""
        self._session.close()
