"""What the NBD server answers to one request, over a backend that says what it gives.

The backend raises OSError or VhdtoolError; the client gets the errno, and the sentence where it
understands structured replies.
"""

import errno
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vhdtool.errors import VhdtoolError
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.buffers import PIECE, SMALL_PIECE, Inbox, Outlet, shares

if TYPE_CHECKING:
    from vhdtool.nbd.buffers import Stream
    from vhdtool.nbd.tls.context import Tls

log = logging.getLogger("nbd")
MOST_EXTENTS = 1 << 14
"""Ranges in one answer about block status; a client asks again for what is behind them."""
_CHANGES = (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES, wire.CMD_TRIM)
_ZEROS = memoryview(bytes(1 << 20))
LONGEST_STEP = 64 << 20
"""Bytes that one step of a trim, of zeroing or of a prefetch covers, so that a pause need not wait
for gigabytes; steps end at multiples of it."""


class Backend(Protocol):
    """What a disk does with requests. Offsets and lengths in bytes.

    Optional: `read_only` (bool), `extents(offset, length, most)` -> (bytes, holds data) of at most
    so many ranges, `waits()` (a request would wait now), `fast_zero` (zeroing costs less than
    writing), `trim(offset, length)` and `can_trim`, `prefetch(offset, length)`.
    """

    def export_size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...


class Answers:
    """One client's requests, one at a time; the answers gather in an outlet."""

    def __init__(self, client: socket.socket, backend: Backend) -> None:
        self.client: Stream = client
        self.backend = backend
        self.structured = False
        self.block_status = False
        self._in = Inbox(client)
        self._out = Outlet(client)
        self._share = False
        self._extents = getattr(backend, "extents", None)
        can_trim = getattr(backend, "can_trim", True)
        self._trim = getattr(backend, "trim", None) if can_trim else None
        self._prefetch = getattr(backend, "prefetch", None)
        self._read_only = bool(getattr(backend, "read_only", False))

    def _begin_tls(self, tls: "Tls") -> None:
        """From now on nothing but TLS counts. Raises WireError."""
        assert isinstance(self.client, socket.socket)
        if self._in.has(1):
            # Somebody on the way may have put it there, to be taken for the client's own word.
            raise wire.WireError("bytes in clear behind the request for TLS")
        stream = tls.start(self.client)
        self.client, self._in, self._out = stream, Inbox(stream), Outlet(stream)

    def bye(self) -> None:
        """Ends TLS where it is on, so that the client sees that nothing was cut off."""
        if not isinstance(self.client, socket.socket):
            self.client.bye()

    def export(self) -> wire.Export:
        return wire.Export(
            self.backend.export_size(),
            self._read_only,
            extents=self._extents is not None,
            trim=self._trim is not None,
            cache=self._prefetch is not None,
        )

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
        # Advice: where nothing can be done about it, nothing is.
        elif command == wire.CMD_TRIM and self._trim is not None:
            _in_steps(self._trim, offset, length)
        elif command == wire.CMD_CACHE and self._prefetch is not None:
            _in_steps(self._prefetch, offset, length)
        if flags & wire.FLAG_FUA and command in _CHANGES:
            self.backend.flush()
        return (wire.done_chunk(cookie) if self.structured else wire.reply(cookie, 0),)

    # data that is not in memory all at once

    def _has_share(self) -> bool:
        """Whether more than a small piece may be in memory now; `_give_share_back` ends it."""
        if not self._share:
            self._share = shares.take()
        return self._share

    def _give_share_back(self) -> None:
        if self._share:
            self._share = False
            shares.give_back()

    def _write_in_pieces(self, request: wire.Request) -> None:
        """Writes data piece by piece, as it arrives, and answers.

        A client that goes before the end leaves a part of its write, as a power cut does.
        """
        _, flags, cookie, offset, length = request
        failure: Exception | None = None
        end = offset + length
        while offset < end:
            piece = self._in.take(min(PIECE, end - offset))
            if failure is None:
                failure = self._failure_of_write(request, offset, piece)
            offset += len(piece)
        if failure is None and flags & wire.FLAG_FUA:
            failure = self._failure_of_write(request, offset, None)
        if failure is not None:
            self._told(request, failure)
        else:
            self._out.add(wire.done_chunk(cookie) if self.structured else wire.reply(cookie, 0))

    def _failure_of_write(
        self, request: wire.Request, offset: int, piece: memoryview | None
    ) -> Exception | None:
        """Writes a piece, or flushes. What the write of it failed with; the others still arrive."""
        try:
            self._check(request)
            if piece is None:
                self.backend.flush()
            else:
                self.backend.write(offset, piece)
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            return error
        return None

    def _read_in_pieces(self, request: wire.Request) -> None:
        """Sends data piece by piece. Raises what reading the first one raises.

        Raises WireError when a later one fails and the answer cannot say so any more.
        """
        self._check(request)
        _, flags, cookie, offset, length = request
        size = PIECE if self._has_share() else SMALL_PIECE
        chunks = self.structured and not flags & wire.FLAG_DF
        end, at = offset + length, offset
        while at < end:
            part = min(size, end - at)
            try:
                data = self.backend.read(at, part)
            except Exception as error:
                if chunks or at == offset:
                    raise
                raise wire.WireError(
                    f"a read failed after its answer had begun: {error}"
                ) from error
            if chunks:
                self._out.add(wire.data_chunk(cookie, at, part, last=at + part == end))
            elif at == offset:
                whole = wire.data_chunk(cookie, offset, length)
                self._out.add(whole if self.structured else wire.reply(cookie, 0))
            self._out.add(data)
            at += part
            self._out.send()

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
            _in_steps(self.backend.write_zeroes, offset, length)
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


def _in_steps(work: Callable[[int, int], None], offset: int, length: int) -> None:
    """Does `work(offset, length)` for parts of a long range."""
    end = offset + length
    while offset < end:
        part = min(end, (offset // LONGEST_STEP + 1) * LONGEST_STEP) - offset
        work(offset, part)
        offset += part
