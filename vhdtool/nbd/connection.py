"""One client of the NBD server: negotiation, then its requests in order.

Requests that are here together are let in together, and with direct I/O served together.
"""

import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.buffers import BUFFER, widen
from vhdtool.nbd.burst import Burst, Served, is_located
from vhdtool.nbd.fast_path import Tally
from vhdtool.nbd.fast_path_session import StraightHalf
from vhdtool.nbd.many import ManyOpener, ManyRequests, Piece
from vhdtool.nbd.memory_bound import LONGEST_WHOLE, SMALL_PIECE
from vhdtool.nbd.negotiation import Negotiation
from vhdtool.nbd.requests import Answers, Backend

if TYPE_CHECKING:
    from vhdtool.nbd.tls.context import Tls

MOST_OPTIONS = 1000
"""Options of one client before it chooses the export."""
MOST_WAITING = 1 << 20
"""Bytes of replies that wait for the requests behind them to be served too."""
BURST = 0.1
"""Seconds after which the backend is asked again, however many requests are here together."""
MOST_TOGETHER = 1 << 20
"""Bytes of a request that may be served together with others; larger ones go alone."""
LARGE = 64 << 10
PAYLOAD_PATIENCE = 0.002
"""Seconds that requests wait for the data of the next one, which is on its way."""
IDLE = 0.5
"""Seconds after which a client that asks for nothing gives its memory back."""
_HEAD = wire.REQUEST.size
_unpack = wire.REQUEST.unpack
_ODD = wire.MIN_BLOCK - 1


class Connection(Answers):
    """Negotiates, then serves one request after the other."""

    def __init__(self, client: socket.socket, backend: Backend, tls: "Tls | None" = None) -> None:
        super().__init__(client, backend)
        self._tls = tls
        self._waits = getattr(backend, "waits", lambda: False)
        self._burst: Burst | None = backend if isinstance(backend, Burst) else None
        self._served: Served | None = None
        self._writing = False
        self._entered = 0.0
        self._opener = ManyOpener()
        self._many: ManyRequests | None = None
        self._many_of: Served | None = None
        self._size = 0
        self._idle = 0.0
        self._straight: StraightHalf | None = None
        self._tally: Tally = [0] * 5
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
        self._size = self.backend.export_size()
        count = getattr(self.backend, "tally", None)
        if count is not None:
            self._tally = count()
        try:
            self._straight = StraightHalf.of(self, self.client, self._in, self._tally)
            if self._straight is not None:
                self._straight.serve()
            else:
                while self.step():
                    pass
        finally:
            self._leave()
            self._give_share_back()
            if self._straight is not None:
                self._straight.close()
            self._many = self._many_of = None
            self._opener.close()
            if count is not None:
                self.backend.counted(self._tally)  # type: ignore[attr-defined]

    def idle_since(self) -> float:
        """time.monotonic() since when the client asks for nothing; 0 while it does."""
        straight = self._straight
        return self._idle or (straight.idle_since if straight is not None else 0.0)

    def stalled_since(self) -> float:
        """Since when it sends no more of a request, or takes no more of a reply; or 0."""
        straight = self._straight
        if self.idle_since():
            return 0.0
        theirs = straight.stalled_since if straight is not None else 0.0
        return self._in.waits_since or self._out.waits_since or theirs

    def step(self) -> bool:
        """Serves one request; False after the last one."""
        inbox, out = self._in, self._out
        if not inbox.has(_HEAD) or out.waiting > MOST_WAITING:
            self.send()
        if not inbox.has(1):
            self._wait()
        magic, flags, command, cookie, offset, length = _unpack(inbox.take(_HEAD))
        if magic != wire.REQUEST_MAGIC:
            raise wire.WireError(f"NBD request with magic {magic:#x}")
        payload: memoryview | None = None
        if command == wire.CMD_READ:
            self._tally[0] += length
            self._tally[2] += 1
        elif command != wire.CMD_WRITE:
            self._tally[4] += 1
        else:
            self._tally[1] += length
            self._tally[3] += 1
            if length > wire.MAX_BLOCK:
                # Its data follows and cannot be skipped at a bounded cost.
                raise wire.WireError(f"a write of {length} bytes")
            if not inbox.has(length):
                self.send()
            if length > BUFFER:
                began = monotonic()
                self._write_in_pieces(wire.Request(command, flags, cookie, offset, length))
                self._latency(monotonic() - began)
                return True
            payload = inbox.take(length)
        if (
            command > wire.CMD_WRITE
            or flags
            or not length
            or (offset | length) & _ODD
            or offset + length > self._size
            or length > MOST_TOGETHER
            or self._burst is None
            or (length > SMALL_PIECE and payload is None and not self._has_share())
            or (payload is not None and self._read_only)
        ):
            return self.alone(wire.Request(command, flags, cookie, offset, length), payload)
        try:
            served, now = self._served, monotonic()
            began = now if served is None else 0.0
            if (
                served is None
                or (payload is not None and not self._writing)
                or now - self._entered > BURST
            ):
                served = self._enter(payload is not None)
                if served is None:
                    return self.alone(wire.Request(command, flags, cookie, offset, length), payload)
            together = self._many is not None and (length >= LARGE or inbox.has(_HEAD))
            if together and self._has_share():
                return self._together(command, cookie, offset, length, payload)
            if payload is None:
                data = served.read(offset, length)
                if self.structured:
                    out.add(wire.data_chunk(cookie, offset, length), data)
                else:
                    out.add(wire.reply(cookie, 0), data)
            else:
                served.write(offset, payload)
                out.add(wire.done_chunk(cookie) if self.structured else wire.reply(cookie, 0))
            if began:
                self._latency(monotonic() - began)
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            if self._served is not None:
                self._burst.failed(error)
            self._told(wire.Request(command, flags, cookie, offset, length), error)
        return True

    def _wait(self) -> None:
        """Until the client asks for something; one that does not soon gives its memory back."""
        self._idle = monotonic()
        if self._in.grown and not self._in.soon(1, IDLE):
            self._in.let_go()
            self._many = self._many_of = None
        self._in.wait()
        self._idle = 0.0

    def _enter(self, writing: bool) -> Served | None:
        """Begins a burst. Raises OSError when no request is let in."""
        assert self._burst is not None
        self._leave()
        if self._out.waiting and self._waits():
            # Who has his answer coming shall not wait for another's.
            self._out.send()
        served = self._burst.begin(writing)
        if served is not self._many_of:
            self._many_of = served
            self._many = self._opener.open(served) if is_located(served) else None
        self._served, self._writing, self._entered = served, writing, monotonic()
        return served

    def _together(
        self, command: int, cookie: int, offset: int, length: int, payload: memoryview | None
    ) -> bool:
        """Serves this request and all that are behind it already at once."""
        many, inbox = self._many, self._in
        assert many is not None
        began = monotonic()
        while True:
            view = many.room(length)
            assert view is not None
            if payload is not None:
                view[:] = payload
            many.add(Piece(payload is not None, offset, view, cookie))
            # Small requests that belong together come together; large ones come one by one.
            if not (inbox.has(_HEAD) or (length >= LARGE and inbox.soon(_HEAD))):
                break
            magic, flags, command, cookie, offset, length = _unpack(inbox.peek(_HEAD))
            writes = command == wire.CMD_WRITE
            if (
                magic != wire.REQUEST_MAGIC
                or command > wire.CMD_WRITE
                or flags
                or (writes and not self._writing)
                or not length
                or (offset | length) & _ODD
                or offset + length > self._size
                or length > MOST_TOGETHER
                or many.full(length)
                or (writes and not inbox.soon(_HEAD + length, PAYLOAD_PATIENCE))
            ):
                break
            inbox.take(_HEAD)
            payload = inbox.take(length) if writes else None
            self._tally[writes] += length
            self._tally[2 + writes] += 1
        done = many.finish()
        self._latency(monotonic() - began)
        self._reply_all(done)
        many.clear()
        return True

    def _reply_all(self, pieces: list[Piece]) -> None:
        out = self._out
        for piece in pieces:
            if piece.error is not None:
                assert self._burst is not None
                self._burst.failed(piece.error)
                code = wire.CMD_WRITE if piece.write else wire.CMD_READ
                length = len(piece.view)
                self._told(wire.Request(code, 0, piece.cookie, piece.offset, length), piece.error)
            elif piece.write:
                cookie = piece.cookie
                out.add(wire.done_chunk(cookie) if self.structured else wire.reply(cookie, 0))
            elif self.structured:
                head = wire.data_chunk(piece.cookie, piece.offset, len(piece.view))
                out.add(head, piece.view)
            else:
                out.add(wire.reply(piece.cookie, 0), piece.view)
        # The memory of what was read is used again by the next requests.
        self.send()

    def _leave(self) -> None:
        if self._served is not None:
            self._served = None
            assert self._burst is not None
            self._burst.end()

    def send(self) -> None:
        """Before anything that may wait for the client: nobody shall wait for that."""
        self._leave()
        if self._out.waiting:
            self._out.send()
        self._give_share_back()

    def alone(self, request: wire.Request, payload: memoryview | None) -> bool:
        """Serves a request on its own; False when it was the last."""
        self._leave()
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
