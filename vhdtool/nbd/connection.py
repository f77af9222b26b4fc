"""One client of the NBD server: negotiation, then its requests in order.

This is the plain path, which defines what a right reply is. The fast path serves what it can.
"""

import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.buffers import BUFFER, LONGEST_WHOLE, SMALL_PIECE, widen
from vhdtool.nbd.fast_path import FastPathSession
from vhdtool.nbd.metrics import new_tally
from vhdtool.nbd.negotiation import Negotiation
from vhdtool.nbd.requests import Answers, Backend

if TYPE_CHECKING:
    from vhdtool.nbd.tls.context import Tls

MOST_OPTIONS = 1000
"""Options of one client before it chooses the export."""
MOST_WAITING = 1 << 20
"""Bytes of replies that wait for the requests behind them to be served too."""
IDLE = 0.5
"""Seconds after which a client that asks for nothing gives its memory back."""
_HEAD = wire.REQUEST.size


class Connection(Answers):
    """Negotiates, then serves one request after the other."""

    def __init__(self, client: socket.socket, backend: Backend, tls: "Tls | None" = None) -> None:
        super().__init__(client, backend)
        self._tls = tls
        self._waits = getattr(backend, "waits", lambda: False)
        self._idle = 0.0
        self._fast_path: FastPathSession | None = None
        self._tally = new_tally()
        latency = getattr(backend, "latency", None)
        self._latency: Callable[[float], None] = getattr(latency, "add", lambda seconds: None)

    def handshake(self) -> bool:
        """Negotiates; True when the client wants the export.

        Waits as long as it takes: whoever accepted the client ends the connection when it is late.
        """
        self.client.sendall(wire.HELLO)
        flags = int.from_bytes(self._in.take(4), "big")
        agreed = Negotiation(flags, self.export, "none" if self._tls is None else "required")
        outcome = None
        options = 0
        while outcome is None:
            options += 1
            if options > MOST_OPTIONS:
                raise wire.WireError(f"more than {MOST_OPTIONS} options")
            option, length = wire.parse_option(bytes(self._in.take(wire.OPTION.size)))
            answer, outcome = agreed.answer(option, bytes(self._in.take(length)))
            self.client.sendall(answer)
            if outcome == "tls":
                assert self._tls is not None
                self._begin_tls(self._tls)
                # Of what was said in clear nothing counts.
                agreed, outcome = Negotiation(flags, self.export, "on"), None
        self.structured, self.block_status = agreed.structured, agreed.block_status
        widen(self.client)
        return outcome == "go"

    def transmission(self) -> None:
        """Serves requests in order; replies leave when no further request is here."""
        count = getattr(self.backend, "tally", None)
        if count is not None:
            self._tally = count()
        try:
            self._fast_path = FastPathSession.open(self, self.client, self._in, self._tally)
            if self._fast_path is not None:
                self._fast_path.serve()
            else:
                while self.serve_next():
                    pass
        finally:
            self._give_share_back()
            if self._fast_path is not None:
                self._fast_path.close()
            if count is not None:
                self.backend.counted(self._tally)  # type: ignore[attr-defined]

    def idle_since(self) -> float:
        """time.monotonic() since when the client asks for nothing; 0 while it does."""
        fast_path = self._fast_path
        return self._idle or (fast_path.idle_since if fast_path is not None else 0.0)

    def stalled_since(self) -> float:
        """Since when it sends no more of a request, or takes no more of a reply; or 0."""
        fast_path = self._fast_path
        if self.idle_since():
            return 0.0
        theirs = fast_path.stalled_since if fast_path is not None else 0.0
        return self._in.waits_since or self._out.waits_since or theirs

    def serve_next(self) -> bool:
        """Serves one request; False after the last one."""
        inbox = self._in
        if not inbox.has(_HEAD) or self._out.waiting > MOST_WAITING:
            self.send()
        if not inbox.has(1):
            self._wait()
        request = wire.parse_request(inbox.take(_HEAD))
        if request.command != wire.CMD_WRITE:
            return self.serve(request, None)
        if request.length > wire.MAX_BLOCK:
            # Its data follows and cannot be skipped at a bounded cost.
            raise wire.WireError(f"a write of {request.length} bytes")
        if not inbox.has(request.length):
            self.send()
        if request.length > BUFFER:
            self._count(request)
            began = monotonic()
            self._write_in_pieces(request)
            self._latency(monotonic() - began)
            return True
        return self.serve(request, inbox.take(request.length))

    def _count(self, request: wire.Request) -> None:
        if request.command > wire.CMD_WRITE:
            self._tally[4] += 1
        else:
            self._tally[request.command] += request.length
            self._tally[2 + request.command] += 1

    def _wait(self) -> None:
        """Until the client asks for something; one that does not soon gives its memory back."""
        self._idle = monotonic()
        if self._in.grown and not self._in.arrives(IDLE):
            self._in.let_go()
        self._in.wait()
        self._idle = 0.0

    def send(self) -> None:
        """Before anything that may wait for the client: nobody shall wait for that."""
        if self._out.waiting:
            self._out.send()
        self._give_share_back()

    def serve(self, request: wire.Request, payload: memoryview | None) -> bool:
        """Serves a request that has been received; False when it was the last."""
        self._count(request)
        if request.command == wire.CMD_DISC:
            self._out.send()
            return False
        if self._out.waiting and (self._may_take_long(request) or self._waits()):
            self._out.send()
        began = monotonic()
        try:
            if request.command == wire.CMD_READ and self._is_long(request.length):
                self.send()
                self._read_in_pieces(request)
            else:
                self._out.add(*self._do(request, payload))
        except wire.WireError:
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            self._told(request, error)
        self._latency(monotonic() - began)
        return True

    def _is_long(self, length: int) -> bool:
        """Whether a read of that length has to be sent piece by piece."""
        return length > LONGEST_WHOLE or (length > SMALL_PIECE and not self._has_share())

    def _may_take_long(self, request: wire.Request) -> bool:
        return request.command > wire.CMD_WRITE or bool(request.flags & wire.FLAG_FUA)
