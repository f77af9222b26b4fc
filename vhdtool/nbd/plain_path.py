"""Receives one client's requests and serves them in Python, in their order.

It defines what a right reply is. The fast path serves those requests that it can.
"""

from time import monotonic

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.buffers import (
    BUFFER,
    LONGEST_WHOLE,
    PIECE,
    SMALL_PIECE,
    ReceiveBuffer,
    ReplyQueue,
    shares,
)
from vhdtool.nbd.metrics import Counters, Latency
from vhdtool.nbd.requests import RequestHandler

MOST_WAITING = 1 << 20
"""Bytes of replies that wait for the requests behind them to be served too."""
IDLE = 0.5
"""Seconds after which the memory of an idle client is released."""
_HEAD = wire.REQUEST.size


class PlainPath:
    """Serves requests from `received`; replies leave by `replies` when no further one is here."""

    def __init__(
        self,
        handler: RequestHandler,
        received: ReceiveBuffer,
        replies: ReplyQueue,
        counters: Counters,
        latency: Latency,
    ) -> None:
        self.handler, self.backend = handler, handler.backend
        self.received, self.replies = received, replies
        self.counters, self.latency = counters, latency
        self._has_share = False
        self.idle_since = 0.0
        """time.monotonic() since when the client is idle; 0 while it is not."""

    def serve_next(self) -> bool:
        """Receives a request and serves it; False after the last one."""
        received = self.received
        if not received.has(_HEAD) or self.replies.waiting > MOST_WAITING:
            self.send()
        if not received.has(1):
            self._wait()
        request = wire.parse_request(received.take(_HEAD))
        if request.command != wire.CMD_WRITE:
            return self.serve(request, None)
        if request.length > wire.MAX_BLOCK:
            # Its data follows and cannot be skipped at a bounded cost.
            raise wire.WireError(f"a write of {request.length} bytes")
        if not received.has(request.length):
            self.send()
        if request.length > BUFFER:
            self._count(request)
            began = monotonic()
            self._write_in_pieces(request)
            self.latency.add(monotonic() - began)
            return True
        return self.serve(request, received.take(request.length))

    def serve(self, request: wire.Request, payload: memoryview | None) -> bool:
        """Serves a request that has been received; False when it was the last."""
        self._count(request)
        if request.command == wire.CMD_DISC:
            self.replies.send()
            return False
        # The client need not wait for earlier replies while this request takes its time.
        if self.replies.waiting and (_may_take_long(request) or self.backend.waits()):
            self.replies.send()
        began = monotonic()
        try:
            if request.command == wire.CMD_READ and self._is_long(request.length):
                self.send()
                self._read_in_pieces(request)
            else:
                self.replies.add(*self.handler.serve(request, payload))
        except wire.WireError:
            raise
        except Exception as error:  # noqa: BLE001 - reported to the client, and logged
            self.replies.add(self.handler.failed(request, error))
        self.latency.add(monotonic() - began)
        return True

    def send(self) -> None:
        """Sends the replies that wait, before anything that may wait for the client."""
        if self.replies.waiting:
            self.replies.send()
        self.close()

    def close(self) -> None:
        """Releases this client's share of the memory limit."""
        if self._has_share:
            self._has_share = False
            shares.give_back()

    def _count(self, request: wire.Request) -> None:
        if request.command > wire.CMD_WRITE:
            self.counters[4] += 1
        else:
            self.counters[request.command] += request.length
            self.counters[2 + request.command] += 1

    def _wait(self) -> None:
        """Waits for a request; a client that sends none for a while gives its memory back."""
        self.idle_since = monotonic()
        if self.received.is_large and not self.received.arrives(IDLE):
            self.received.release()
        self.received.wait()
        self.idle_since = 0.0

    # data that is not in memory all at once

    def _take_share(self) -> bool:
        """Returns whether more than a small piece may be in memory now, until `close`."""
        if not self._has_share:
            self._has_share = shares.take()
        return self._has_share

    def _is_long(self, length: int) -> bool:
        """Returns whether a read of that length has to be sent piece by piece."""
        return length > LONGEST_WHOLE or (length > SMALL_PIECE and not self._take_share())

    def _write_in_pieces(self, request: wire.Request) -> None:
        """Writes data piece by piece, as it arrives, and replies.

        A client that disconnects before the end leaves a part of its write, as a power cut does.
        """
        failure: Exception | None = None
        offset, end = request.offset, request.offset + request.length
        while offset < end:
            piece = self.received.take(min(PIECE, end - offset))
            # The rest of a write that failed still has to be received.
            failure = failure or self._write_piece(request, offset, piece)
            offset += len(piece)
        if request.flags & wire.FLAG_FUA:
            failure = failure or self._write_piece(request, offset, None)
        if failure is not None:
            self.replies.add(self.handler.failed(request, failure))
        else:
            self.replies.add(self.handler.done(request.cookie))

    def _write_piece(
        self, request: wire.Request, offset: int, piece: memoryview | None
    ) -> Exception | None:
        """Writes a piece, or flushes for None; returns the error that it failed with."""
        try:
            self.handler.check(request)
            if piece is None:
                self.backend.flush()
            else:
                self.backend.write(offset, piece)
        except Exception as error:  # noqa: BLE001 - reported to the client, and logged
            return error
        return None

    def _read_in_pieces(self, request: wire.Request) -> None:
        """Sends data piece by piece. Raises what reading the first piece raises.

        Raises WireError when a later one fails and a simple reply cannot say so any more.
        """
        self.handler.check(request)
        _, flags, cookie, offset, length = request
        size = PIECE if self._take_share() else SMALL_PIECE
        chunks = self.handler.structured and not flags & wire.FLAG_DF
        end, at = offset + length, offset
        while at < end:
            part = min(size, end - at)
            try:
                data = self.backend.read(at, part)
            except Exception as error:
                if chunks or at == offset:
                    raise
                raise wire.WireError(f"a read failed after its reply had begun: {error}") from error
            if chunks:
                self.replies.add(wire.data_chunk(cookie, at, part, last=at + part == end))
            elif at == offset:
                self.replies.add(self.handler.read_head(cookie, offset, length))
            self.replies.add(data)
            at += part
            self.replies.send()


def _may_take_long(request: wire.Request) -> bool:
    return request.command > wire.CMD_WRITE or bool(request.flags & wire.FLAG_FUA)
