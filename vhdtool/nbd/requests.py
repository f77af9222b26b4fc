"""What one request does to a backend, and the bytes of its reply. No sockets here.

A backend raises OSError or VhdtoolError; the client gets the errno, and the message where it
understands structured replies.
"""

import errno
import logging
from collections.abc import Callable

from vhdtool.errors import VhdtoolError
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.backend import Backend

log = logging.getLogger("nbd")
MOST_EXTENTS = 1 << 14
"""Ranges in one reply about block status; a client asks again for what is behind them."""
_CHANGES = (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES, wire.CMD_TRIM)
_ZEROS = memoryview(bytes(1 << 20))
LONGEST_STEP = 64 << 20
"""Bytes that one step of a trim, of zeroing or of a prefetch covers, so that a pause need not wait
for gigabytes; steps end at multiples of it."""


def export_of(backend: Backend) -> wire.Export:
    """Returns what the server announces of a backend."""
    return wire.Export(
        backend.export_size(),
        backend.read_only,
        extents=backend.can_extents,
        trim=backend.can_trim,
        cache=backend.can_prefetch,
    )


class RequestHandler:
    """Serves requests of one client, one at a time.

    `structured`: replies in chunks; `block_status`: base:allocation was negotiated.
    """

    def __init__(self, backend: Backend, structured: bool, block_status: bool) -> None:
        self.backend = backend
        self.structured = structured
        self._block_status = block_status

    def serve(self, request: wire.Request, payload: memoryview | None) -> tuple[bytes, ...]:
        """Serves a request and returns its reply. Raises what `check` and the backend raise."""
        command, flags, cookie, offset, length = request
        self.check(request)
        if command == wire.CMD_READ:
            data = self.backend.read(offset, length)
            return self.read_head(cookie, offset, length), data
        if command == wire.CMD_BLOCK_STATUS:
            return (wire.status_chunk(cookie, self._status(request)),)
        if payload is not None:
            self.backend.write(offset, payload)
        elif command == wire.CMD_FLUSH:
            self.backend.flush()
        elif command == wire.CMD_WRITE_ZEROES:
            self._zero(offset, length, flags)
        # Trim and cache are advice: a backend that cannot follow it succeeds.
        elif command == wire.CMD_TRIM and self.backend.can_trim:
            _in_steps(self.backend.trim, offset, length)
        elif command == wire.CMD_CACHE and self.backend.can_prefetch:
            _in_steps(self.backend.prefetch, offset, length)
        if flags & wire.FLAG_FUA and command in _CHANGES:
            self.backend.flush()
        return (self.done(cookie),)

    def done(self, cookie: int) -> bytes:
        """Returns the reply to a request that succeeded and has no data."""
        return wire.done_chunk(cookie) if self.structured else wire.reply(cookie, 0)

    def read_head(self, cookie: int, offset: int, length: int) -> bytes:
        """Returns the head of a reply that carries all data of a read."""
        if self.structured:
            return wire.data_chunk(cookie, offset, length)
        return wire.reply(cookie, 0)

    def failed(self, request: wire.Request, error: Exception) -> bytes:
        """Returns the reply to a request that failed, and logs what users should know."""
        if isinstance(error, VhdtoolError):
            log.error("request failed: %s", error)
            known = error.errno if isinstance(error, OSError) else None
            number, message = known or errno.EIO, str(error)
        elif isinstance(error, OSError):
            number, message = error.errno or errno.EIO, error.strerror or str(error)
        elif isinstance(error, MemoryError):
            number, message = errno.ENOMEM, "no memory"
        else:
            log.error("defect while serving %s", request, exc_info=error)
            number, message = errno.EIO, "a defect; the server's log has more"
        code = wire.wire_errno(number)
        if self.structured:
            return wire.error_chunk(request.cookie, code, message)
        return wire.reply(request.cookie, code)

    def check(self, request: wire.Request) -> None:
        """Checks a request's command, flags and bounds. Raises OSError."""
        command, flags, _, offset, length = request
        allowed = wire.COMMAND_FLAGS.get(command)
        if allowed is None or flags & ~allowed:
            raise OSError(errno.EINVAL, f"unknown command {command} or flags {flags:#x}")
        if command == wire.CMD_FLUSH:
            return
        if command in _CHANGES and self.backend.read_only:
            raise OSError(errno.EPERM, "the disk is read-only")
        if (offset | length) % wire.MIN_BLOCK or not length:
            raise OSError(errno.EINVAL, "not in whole sectors of 512 bytes")
        if offset + length > self.backend.export_size():
            code = errno.ENOSPC if command in _CHANGES else errno.EINVAL
            raise OSError(code, "past the end of the disk")
        if command == wire.CMD_READ and length > wire.MAX_BLOCK:
            raise OSError(errno.EOVERFLOW, f"more than {wire.MAX_BLOCK} bytes")
        if command == wire.CMD_BLOCK_STATUS and not self._block_status:
            raise OSError(errno.EINVAL, "base:allocation was not negotiated")

    def _zero(self, offset: int, length: int, flags: int) -> None:
        if flags & wire.FLAG_FAST_ZERO and not self.backend.can_fast_zero:
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
        most = 1 if request.flags & wire.FLAG_REQ_ONE else MOST_EXTENTS
        return [
            (length, 0 if holds else wire.STATE_HOLE | wire.STATE_ZERO)
            for length, holds in self.backend.extents(request.offset, request.length, most)
        ]


def _in_steps(work: Callable[[int, int], None], offset: int, length: int) -> None:
    """Calls `work(offset, length)` for parts of a long range."""
    end = offset + length
    while offset < end:
        part = min(end, (offset // LONGEST_STEP + 1) * LONGEST_STEP) - offset
        work(offset, part)
        offset += part
