"""The library's half of a client: who serves which of its requests."""

import socket
from typing import Protocol, Self, runtime_checkable

from vhdtool.errors import VhdtoolError
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.backend import FastPathGate, Grant
from vhdtool.nbd.buffers import Inbox, Stream
from vhdtool.nbd.fast_path import (
    AGAIN,
    GONE,
    PLACE,
    SharedGate,
    Straight,
)
from vhdtool.nbd.metrics import Latency, Tally


@runtime_checkable
class Granting(Protocol):
    """A backend that lets the fast path move data by itself."""

    latency: Latency

    @property
    def fast_path_gate(self) -> FastPathGate: ...
    def grant(self) -> Grant | None: ...
    def allocate(self, block: int, generation: int, inside: bool) -> None: ...


class Python(Protocol):
    """The other half."""

    @property
    def backend(self) -> object: ...
    @property
    def structured(self) -> bool: ...

    def step(self) -> bool:
        """Serves a request, or some; False after the last one."""

    def alone(self, request: wire.Request, payload: memoryview | None) -> bool:
        """Serves a request that has been received."""

    def send(self) -> None:
        """Lets nobody wait for us: answers leave, and we are not inside the gate."""


class StraightHalf:
    """Hands a connection to the library and takes it back, until the client has gone."""

    def __init__(
        self, python: Python, backend: Granting, straight: Straight, inbox: Inbox, tally: Tally
    ) -> None:
        self._python, self._backend, self._straight = python, backend, straight
        self._inbox, self._tally = inbox, tally

    @classmethod
    def of(cls, python: Python, client: Stream, inbox: Inbox, tally: Tally) -> Self | None:
        """None where Python has to serve all: no library, no memory, or the client uses TLS."""
        backend = python.backend
        if not isinstance(client, socket.socket):
            return None
        if not isinstance(backend, Granting):
            return None
        gate = backend.fast_path_gate
        if not isinstance(gate, SharedGate):
            return None
        try:
            straight = Straight(client.fileno(), inbox.buffer, tally, gate, python.structured)
        except MemoryError:
            return None
        return cls(python, backend, straight, inbox, tally)

    def serve(self) -> None:
        """Until the client has gone."""
        python, backend, straight, inbox = self._python, self._backend, self._straight, self._inbox
        while True:
            grant = backend.grant()
            if grant is not None:
                python.send()
                why, start, end = straight.serve(grant, *inbox.bounds)
                inbox.bounds = start, end
                straight.latencies(backend.latency.add_many)
                if why == PLACE:
                    try:
                        backend.allocate(straight.place, grant.generation, straight.under_way)
                        continue
                    except (OSError, VhdtoolError):
                        # The request is still in the inbox: serving it will tell the client.
                        why = straight.drain()
                while why == AGAIN:
                    why = self._again()
                if why == GONE:
                    return
            if not python.step():
                return

    def _again(self) -> int:
        """A request that failed in the library is served by Python, which tells why it does."""
        straight = self._straight
        command, cookie, offset, length, data = straight.again()
        write = command == wire.CMD_WRITE
        self._tally[write] += length
        self._tally[2 + write] += 1
        request = wire.Request(command, 0, cookie, offset, length)
        self._python.alone(request, data if write else None)
        self._python.send()
        straight.answered()
        return straight.drain()

    @property
    def idle_since(self) -> float:
        """As of `Straight`."""
        return self._straight.idle_since

    @property
    def stalled_since(self) -> float:
        """As of `Straight`."""
        return self._straight.stalled_since

    def close(self) -> None:
        """What is under way ends first."""
        self._straight.close()
