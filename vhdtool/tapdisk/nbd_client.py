"""One client of the NBD server, over a backend that says what a request gives.

The backend raises OSError or VhdtoolError; the client gets the errno, and the sentence where it
understands structured replies.
"""

import errno
import logging
import socket
from collections.abc import Callable
from time import monotonic
from typing import Protocol, TypeGuard, runtime_checkable

from vhdtool.errors import VhdtoolError
from vhdtool.image.many import Located, ManyRequests, Piece, open_many
from vhdtool.tapdisk import nbd_wire as wire
from vhdtool.tapdisk.nbd_options import Negotiation
from vhdtool.tapdisk.nbd_stream import Inbox, Outlet, widen

log = logging.getLogger("nbd")
HANDSHAKE_PATIENCE = 30.0
"""Seconds that a client has for each step until it has said which export it wants."""
MOST_WAITING = 1 << 20
"""Bytes of replies that wait for the requests behind them to be served too."""
MOST_EXTENTS = 1 << 14
"""Ranges in one answer about block status; a client asks again for what is behind them."""
MOST_TOGETHER = 1 << 20
"""Bytes of a request that may be served together with others; larger ones go alone."""
LARGE = 64 << 10
PAYLOAD_PATIENCE = 0.002
"""Seconds that requests wait for the data of the next one, which is on its way."""
_CHANGES = (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES, wire.CMD_TRIM)
_ZEROS = memoryview(bytes(1 << 20))
_HEAD = wire.REQUEST.size
_unpack = wire.REQUEST.unpack
_ODD = wire.MIN_BLOCK - 1


class Backend(Protocol):
    """What a disk does with requests. Offsets and lengths in bytes.

    Optional: `read_only` (bool), `extents(offset, length, most)` -> (bytes, holds data) of at most
    so many ranges, `waits()` (a request would wait now), `fast_zero` (zeroing costs less than
    writing), and a Burst's methods.
    """

    def export_size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...


class Served(Protocol):
    """What reads and writes of a burst go to."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: memoryview) -> None: ...


@runtime_checkable
class Burst(Protocol):
    """A backend that lets several requests in at once: it is asked once, not for each of them."""

    def begin(self, writing: bool) -> Served | None:
        """Lets requests in until `end`; None where each has to be asked for."""

    def end(self) -> None:
        """No request of the burst is under way any more."""

    def failed(self, error: Exception) -> None:
        """A request of the burst failed so."""


def _located(served: object) -> TypeGuard[Located]:
    return hasattr(served, "locate")


class Connection:
    """Negotiates, then serves one request after the other."""

    def __init__(self, client: socket.socket, backend: Backend) -> None:
        self.client = client
        self.backend = backend
        self.structured = False
        self.block_status = False
        self._in = Inbox(client)
        self._out = Outlet(client)
        self._extents = getattr(backend, "extents", None)
        self._waits = getattr(backend, "waits", lambda: False)
        self._read_only = bool(getattr(backend, "read_only", False))
        self._burst: Burst | None = backend if isinstance(backend, Burst) else None
        self._served: Served | None = None
        self._writing = False
        self._many: ManyRequests | None = None
        self._many_of: Served | None = None
        self._size = 0
        self._tally = [0, 0]
        latency = getattr(backend, "latency", None)
        self._latency: Callable[[float], None] = getattr(latency, "add", lambda seconds: None)

    def export(self) -> wire.Export:
        return wire.Export(self.backend.export_size(), self._read_only, self._extents is not None)

    def handshake(self) -> bool:
        """Negotiates; True when the client wants the export."""
        client = self.client
        client.settimeout(HANDSHAKE_PATIENCE)
        client.sendall(wire.HELLO)
        agreed = Negotiation(int.from_bytes(self._in.take(4), "big"), self.export)
        outcome = None
        while outcome is None:
            option, length = wire.parse_option(bytes(self._in.take(wire.OPTION.size)))
            answer, outcome = agreed.answer(option, bytes(self._in.take(length)))
            client.sendall(answer)
        self.structured, self.block_status = agreed.structured, agreed.block_status
        client.settimeout(None)
        widen(client)
        return outcome == "go"

    def transmission(self) -> None:
        """Serves requests in order; replies leave when no further request is here."""
        self._size = self.backend.export_size()
        count = getattr(self.backend, "tally", None)
        if count is not None:
            self._tally = count()
        try:
            while self._next():
                pass
        finally:
            self._leave()
            self._close_many()
            if count is not None:
                self.backend.counted(self._tally)  # type: ignore[attr-defined]

    def _next(self) -> bool:
        """Serves one request; False after the last one."""
        inbox, out = self._in, self._out
        if not inbox.has(_HEAD) or out.waiting > MOST_WAITING:
            self._send()
        magic, flags, command, cookie, offset, length = _unpack(inbox.take(_HEAD))
        if magic != wire.REQUEST_MAGIC:
            raise wire.WireError(f"NBD request with magic {magic:#x}")
        payload: memoryview | None = None
        if command == wire.CMD_READ:
            self._tally[0] += length
        elif command == wire.CMD_WRITE:
            self._tally[1] += length
            if length > wire.MAX_BLOCK:
                # Its data follows and cannot be skipped at a bounded cost.
                raise wire.WireError(f"a write of {length} bytes")
            if not inbox.has(length):
                self._send()
            payload = inbox.take(length)
        if (
            command > wire.CMD_WRITE
            or flags
            or not length
            or (offset | length) & _ODD
            or offset + length > self._size
            or length > MOST_TOGETHER
            or self._burst is None
        ):
            return self._one(wire.Request(command, flags, cookie, offset, length), payload)
        try:
            served = self._served
            began = monotonic() if served is None else 0.0
            if served is None or (payload is not None and not self._writing):
                served = self._enter(payload is not None)
                if served is None:
                    return self._one(wire.Request(command, flags, cookie, offset, length), payload)
            if self._many is not None and (length >= LARGE or inbox.has(_HEAD)):
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

    def _enter(self, writing: bool) -> Served | None:
        """Begins a burst. Raises OSError when no request is let in."""
        assert self._burst is not None
        self._leave()
        if self._out.waiting and self._waits():
            # Who has his answer coming shall not wait for another's.
            self._out.send()
        served = self._burst.begin(writing)
        if served is not self._many_of:
            self._close_many()
            self._many_of = served
            self._many = open_many(served) if served is not None and _located(served) else None
        self._served, self._writing = served, writing
        return served

    def _close_many(self) -> None:
        if self._many is not None:
            self._many.close()
        self._many = self._many_of = None

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
        self._send()

    def _leave(self) -> None:
        if self._served is not None:
            self._served = None
            assert self._burst is not None
            self._burst.end()

    def _send(self) -> None:
        """Before anything that may wait for the client: nobody shall wait for that."""
        self._leave()
        if self._out.waiting:
            self._out.send()

    def _one(self, request: wire.Request, payload: memoryview | None) -> bool:
        """Serves a request on its own; False when it was the last."""
        self._leave()
        if request.command == wire.CMD_DISC:
            self._out.send()
            return False
        if self._out.waiting and (self._may_take_long(request) or self._waits()):
            self._out.send()
        began = monotonic()
        try:
            self._out.add(*self._do(request, payload))
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            self._told(request, error)
        self._latency(monotonic() - began)
        return True

    def _may_take_long(self, request: wire.Request) -> bool:
        return request.command > wire.CMD_WRITE or bool(request.flags & wire.FLAG_FUA)

    def _told(self, request: wire.Request, error: Exception) -> None:
        """Answers a request that failed."""
        if isinstance(error, OSError):
            self._failed(request, error.errno or errno.EIO, error.strerror or str(error))
        elif isinstance(error, VhdtoolError):
            log.error("request failed: %s", error)
            self._failed(request, getattr(error, "errno", errno.EIO), str(error))
        elif isinstance(error, MemoryError):
            self._failed(request, errno.ENOMEM, "no memory")
        else:
            log.error("defect while answering %s", request, exc_info=error)
            self._failed(request, errno.EIO, "a defect; the server's log has more")

    def _failed(self, request: wire.Request, number: int, message: str) -> None:
        code = wire.wire_errno(number)
        if self.structured:
            self._out.add(wire.error_chunk(request.cookie, code, message))
        else:
            self._out.add(wire.reply(request.cookie, code))

    def _do(self, request: wire.Request, payload: memoryview | None) -> tuple[bytes, ...]:
        command, flags, cookie, offset, length = request
        self._check(request)
        if command == wire.CMD_READ:
            data = self.backend.read(offset, length)
            if self.structured:
                return wire.data_chunk(cookie, offset, length), data
            return wire.reply(cookie, 0), data
        if command == wire.CMD_BLOCK_STATUS:
            return (wire.status_chunk(cookie, self._status(request)),)
        if payload is not None:
            self.backend.write(offset, payload)
        elif command == wire.CMD_FLUSH:
            self.backend.flush()
        elif command == wire.CMD_WRITE_ZEROES:
            self._zero(offset, length, flags)
        # Trim and cache are advice that nothing has to be done about.
        if flags & wire.FLAG_FUA and command in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES):
            self.backend.flush()
        return (wire.done_chunk(cookie) if self.structured else wire.reply(cookie, 0),)

    def _check(self, request: wire.Request) -> None:
        """Raises OSError for a request that no backend has to see."""
        command, flags, _, offset, length = request
        allowed = wire.COMMAND_FLAGS.get(command)
        if allowed is None or flags & ~allowed:
            raise OSError(errno.EINVAL, f"unknown command {command} or flags {flags:#x}")
        if command == wire.CMD_FLUSH:
            return
        if self._read_only and command in _CHANGES:
            raise OSError(errno.EPERM, "the disk is read-only")
        if (offset | length) % wire.MIN_BLOCK or not length:
            raise OSError(errno.EINVAL, "not in whole sectors of 512 bytes")
        if offset + length > self.backend.export_size():
            code = errno.ENOSPC if command in _CHANGES else errno.EINVAL
            raise OSError(code, "past the end of the disk")
        if command == wire.CMD_READ and length > wire.MAX_BLOCK:
            raise OSError(errno.EOVERFLOW, f"more than {wire.MAX_BLOCK} bytes")
        if command == wire.CMD_BLOCK_STATUS and not self.block_status:
            raise OSError(errno.EINVAL, "base:allocation was not negotiated")

    def _zero(self, offset: int, length: int, flags: int) -> None:
        if flags & wire.FLAG_FAST_ZERO and not getattr(self.backend, "fast_zero", False):
            raise OSError(errno.ENOTSUP, "zeroing is no faster than writing here")
        if not flags & wire.FLAG_NO_HOLE:
            self.backend.write_zeroes(offset, length)
            return
        if flags & wire.FLAG_FAST_ZERO:
            raise OSError(errno.ENOTSUP, "zeros without holes have to be written")
        while length:
            part = _ZEROS[: min(length, len(_ZEROS))]
            self.backend.write(offset, part)
            offset += len(part)
            length -= len(part)

    def _status(self, request: wire.Request) -> list[tuple[int, int]]:
        assert self._extents is not None
        most = 1 if request.flags & wire.FLAG_REQ_ONE else MOST_EXTENTS
        return [
            (length, 0 if holds else wire.STATE_HOLE | wire.STATE_ZERO)
            for length, holds in self._extents(request.offset, request.length, most)
        ]
