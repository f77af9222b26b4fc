"""Memory for a client's requests and replies, with a limit for all clients together."""

import contextlib
import mmap
import select
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from vhdtool.nbd.tls.stream import TlsStream

Stream: TypeAlias = "socket.socket | TlsStream"

BUFFER = 2 << 20
"""Bytes of an inbox; memory only as far as a client has sent them."""
_AT_ONCE = 512 << 10
"""Bytes that are received with one call: they stay in a processor's cache until they are read."""
_IDLE_MEMORY = 256 << 10
"""Bytes that the buffer of an idle client may have."""
_SNDBUFFORCE = 32
"""SO_SNDBUFFORCE of Linux, which Python does not name."""
_SOCKET_BUFFER = 2 << 20
_MOST_PARTS = 512
"""Below IOV_MAX."""
SHARED = 256 << 20
"""Bytes of all shares. The fast path has as much again."""
SHARE = 6 << 20
"""Bytes of a share: the data of one read, and the replies that gather before it."""
LONGEST_WHOLE = 4 << 20
"""Bytes of a read that is in memory as a whole, with a share. A longer one goes in pieces."""
PIECE = 1 << 20
"""Bytes of a large read or write that are in memory at once. Half of what a socket holds, so that
the next piece is read while the client takes this one; a write comes through the inbox."""
SMALL_PIECE = 64 << 10
"""The same without a share."""


class ReceiveBuffer:
    """Receives from a socket into one buffer. Raises EOFError when the client has gone."""

    def __init__(self, client: Stream) -> None:
        self._client = client
        self._socket = client if isinstance(client, socket.socket) else None
        # Unlike select() it takes any descriptor, however many clients there are.
        self._readable = select.poll()
        if self._socket is not None:
            self._readable.register(self._socket, select.POLLIN)
        # A client takes as much memory as it uses of that, which a bytearray would touch at once.
        self.buffer = mmap.mmap(-1, BUFFER)
        with contextlib.suppress(OSError):
            # Where all memory is in huge pages one byte would take all of it.
            self.buffer.madvise(mmap.MADV_NOHUGEPAGE)
        self._view = memoryview(self.buffer)
        self._at = 0
        self._end = 0
        self._used = 0
        self.waits_since = 0.0
        """time.monotonic() since when `take` or `wait` waits; 0 while they do not."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Start and end of the bytes in `buffer` that have not been taken yet."""
        return self._at, self._end

    @bounds.setter
    def bounds(self, bounds: tuple[int, int]) -> None:
        self._at, self._end = bounds

    def has(self, length: int) -> bool:
        """Returns whether so many bytes have been received and not taken."""
        return self._end - self._at >= length

    def take(self, length: int) -> memoryview:
        """Returns the next bytes, at most BUFFER, valid until the next `take`; waits for them."""
        if self._end - self._at < length:
            self._fill(length)
        start = self._at
        self._at = end = start + length
        return self._view[start:end]

    def wait(self) -> None:
        """Waits until a byte has been received."""
        if not self.has(1):
            self._fill(1)

    @property
    def is_large(self) -> bool:
        """Whether `release` would free memory."""
        return self._used > _IDLE_MEMORY

    def release(self) -> None:
        """Gives the buffer's memory back to the kernel; nothing may be in it."""
        self.buffer.madvise(mmap.MADV_DONTNEED)
        self._used = 0

    def _fill(self, length: int) -> None:
        left = self._end - self._at
        if self._at + length > BUFFER or not left:
            self._view[:left] = bytes(self._view[self._at : self._end])
            self._at, self._end = 0, left
        self.waits_since = monotonic()
        while self._end - self._at < length:
            self._receive()
        self.waits_since = 0.0

    def _receive(self) -> None:
        got = self._client.recv_into(self._view[self._end : self._end + _AT_ONCE])
        if not got:
            raise EOFError
        self._end += got
        self._used = max(self._used, self._end)

    def arrives(self, timeout: float) -> bool:
        """Returns whether bytes are here, or arrive within `timeout` seconds."""
        if self._socket is None:
            # With TLS the descriptor does not show whether a whole record has arrived.
            return self.has(1)
        return self.has(1) or bool(self._readable.poll(timeout * 1000))


class ReplyQueue:
    """Collects replies and sends them with as few system calls as it can."""

    def __init__(self, client: Stream) -> None:
        self._client = client
        self._parts: list[bytes | memoryview] = []
        self.waiting = 0
        """Bytes that are not sent yet."""
        self.waits_since = 0.0
        """time.monotonic() since when `send` runs; 0 while it does not."""

    def add(self, *parts: bytes | memoryview) -> None:
        self._parts += parts
        for part in parts:
            self.waiting += len(part)

    def send(self) -> None:
        """Sends all replies; returns when the socket has taken them."""
        parts, self._parts, self.waiting = self._parts, [], 0
        self.waits_since = monotonic()
        while parts:
            now = parts[:_MOST_PARTS]
            sent = self._client.sendmsg(now)
            parts = parts[len(now) :]
            for number, part in enumerate(now):
                if sent < len(part):
                    parts = [memoryview(part)[sent:], *now[number + 1 :], *parts]
                    break
                sent -= len(part)
        self.waits_since = 0.0


def widen(client: Stream) -> None:
    """Makes the send buffer larger: one call sends the data of a large read."""
    for option in (_SNDBUFFORCE, socket.SO_SNDBUF):
        try:
            client.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        except OSError:
            continue
        return


class SharePool:
    """Shares of the memory that all clients may use for data.

    A client needs a share for more than a small piece at a time. Without one it is served in small
    pieces, so that no client waits for the memory of another.
    """

    def __init__(self, size: int = SHARED) -> None:
        self._left = size // SHARE
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Takes a share; returns False when none is left."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._left += 1


shares = SharePool()
"""The shares of this process."""
