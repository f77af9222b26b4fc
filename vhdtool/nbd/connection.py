"""One client of the NBD server: negotiation, then its requests by the fast or the plain path."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.buffers import ReceiveBuffer, ReplyQueue, Stream, widen
from vhdtool.nbd.fast_path import FastPathSession
from vhdtool.nbd.metrics import Latency
from vhdtool.nbd.negotiation import Negotiation, TlsState
from vhdtool.nbd.plain_path import PlainPath
from vhdtool.nbd.requests import RequestHandler, export_of

if TYPE_CHECKING:
    from vhdtool.nbd.tls.context import Tls

MOST_OPTIONS = 1000
"""Options of one client before it chooses the export."""


class Connection:
    """Negotiates (`handshake`), then serves requests until the client has gone (`transmission`).

    With `tls` no client is served without it.
    """

    def __init__(
        self,
        client: socket.socket,
        backend: Backend,
        tls: "Tls | None" = None,
        refusal: Callable[[], str] = str,
    ) -> None:
        """`refusal`: as Negotiation has it."""
        self._socket = client
        self._stream: Stream = client
        self._backend = backend
        self._tls = tls
        self._refusal = refusal
        self._received = ReceiveBuffer(client)
        self._replies = ReplyQueue(client)
        self._negotiated: Negotiation | None = None
        self._plain: PlainPath | None = None
        self._fast: FastPathSession | None = None

    def handshake(self) -> bool:
        """Negotiates; True when the client wants the export. Raises WireError.

        Waits as long as it takes: the accept loop disconnects a client that is late.
        """
        self._stream.sendall(wire.HELLO)
        flags = int.from_bytes(self._received.take(4), "big")
        agreed = self._negotiation(flags, "none" if self._tls is None else "required")
        outcome = None
        options = 0
        while outcome is None:
            options += 1
            if options > MOST_OPTIONS:
                raise wire.WireError(f"more than {MOST_OPTIONS} options")
            option, length = wire.parse_option(bytes(self._received.take(wire.OPTION.size)))
            reply, outcome = agreed.reply(option, bytes(self._received.take(length)))
            self._stream.sendall(reply)
            if outcome == "tls":
                self._begin_tls()
                # Options that were agreed in clear do not count.
                agreed, outcome = self._negotiation(flags, "on"), None
        self._negotiated = agreed
        widen(self._stream)
        return outcome == "go"

    def _negotiation(self, flags: int, tls: TlsState) -> Negotiation:
        return Negotiation(flags, lambda: export_of(self._backend), tls, self._refusal)

    def _begin_tls(self) -> None:
        """Starts TLS; nothing in clear is received any more. Raises WireError."""
        assert self._tls is not None
        if self._received.has(1):
            # An attacker on the path may have injected these bytes.
            raise wire.WireError("bytes in clear behind the request for TLS")
        stream = self._tls.start(self._socket)
        self._stream = stream
        self._received, self._replies = ReceiveBuffer(stream), ReplyQueue(stream)

    def transmission(self) -> None:
        """Serves requests in order until the client has gone."""
        assert self._negotiated is not None
        handler = RequestHandler(
            self._backend, self._negotiated.structured, self._negotiated.block_status
        )
        counters = self._backend.connected()
        latency = self._backend.latency or Latency()
        plain = PlainPath(handler, self._received, self._replies, counters, latency)
        self._plain = plain
        try:
            self._fast = FastPathSession.open(plain, self._stream)
            if self._fast is not None:
                self._fast.serve()
            else:
                while plain.serve_next():
                    pass
        finally:
            plain.close()
            if self._fast is not None:
                self._fast.close()
            self._backend.disconnected(counters)

    def end_tls(self) -> None:
        """Ends TLS where it is on, so that the client sees that nothing was cut off."""
        if not isinstance(self._stream, socket.socket):
            self._stream.end()

    def idle_since(self) -> float:
        """Returns time.monotonic() since when the client is idle; 0 while it is not."""
        plain = self._plain.idle_since if self._plain is not None else 0.0
        fast = self._fast.idle_since if self._fast is not None else 0.0
        return plain or fast

    def stalled_since(self) -> float:
        """time.monotonic() since when a request or reply has stopped half way; or 0."""
        if self.idle_since():
            return 0.0
        fast = self._fast.stalled_since if self._fast is not None else 0.0
        return self._received.waits_since or self._replies.waits_since or fast
