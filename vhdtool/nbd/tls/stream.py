"""A TLS connection with the methods of a socket that buffers.py calls.

The server keeps the plain socket, and ends a client by it. Once the client has asked for TLS,
nothing but this module reads or writes it.
"""

import contextlib
import socket
import ssl
from collections.abc import Sequence

from vhdtool.nbd.protocol import WireError

_AT_ONCE = 256 << 10
"""Bytes that are received with one call: sixteen TLS records."""
_RECORD = 16 << 10
_SEND_ABOVE = 1 << 20


class TlsStream:
    """The server's side of one connection, for one thread. Raises WireError for bad TLS.

    It has no `fileno`, since nobody else can read what passes there, or may write to it.
    """

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        self._client = client
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    def handshake(self) -> None:
        """Negotiates TLS. Raises WireError when that fails."""
        try:
            while not self._step():
                if not self._pull():
                    # Some clients send no alert when they reject the certificate.
                    raise WireError("TLS handshake: the client ended it")
        except OSError as error:
            raise WireError(f"TLS handshake: {error}") from None

    def _step(self) -> bool:
        """Replies to what has been received; returns whether the handshake is over."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise WireError(f"TLS handshake: {_reason(error)}") from None
        else:
            return True
        finally:
            # Even when it fails: the alert tells the client why.
            self._push()

    def _push(self) -> None:
        if self._out.pending:
            self._client.sendall(self._out.read())

    def _pull(self) -> bool:
        """Receives bytes; returns False at the end."""
        raw = self._client.recv(_AT_ONCE)
        if raw:
            self._in.write(raw)
        else:
            self._in.write_eof()
        return bool(raw)

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """As a socket's, without flags: what has been received, 0 at the end."""
        if flags:
            raise ValueError("TLS receives without flags")
        want = nbytes or len(buffer)
        got = 0
        while got < want:
            try:
                # mypy: the second argument is a buffer, and the result then a count.
                count: int = self._tls.read(want - got, buffer[got:])  # type: ignore
            except ssl.SSLWantReadError:
                # A change of keys may need a reply.
                self._push()
                if got:
                    break
                self._pull()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            except ssl.SSLError as error:
                raise WireError(f"TLS: {_reason(error)}") from None
            else:
                if not count:
                    break
                got += count
        return got

    def sendmsg(self, parts: Sequence[bytes | memoryview]) -> int:
        """Sends all parts whole, and returns their bytes."""
        small: list[bytes | memoryview] = []
        held = total = 0
        for part in parts:
            total += len(part)
            if held + len(part) <= _RECORD:
                # Headers, and the data of small reads, share a record.
                small.append(part)
                held += len(part)
                continue
            self._encrypt(b"".join(small))
            small, held = [], 0
            for at in range(0, len(part), _SEND_ABOVE):
                self._encrypt(memoryview(part)[at : at + _SEND_ABOVE])
        self._encrypt(b"".join(small))
        self._push()
        return total

    def sendall(self, data: bytes) -> None:
        self.sendmsg([data])

    def _encrypt(self, data: bytes | memoryview) -> None:
        if not data:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise WireError(f"TLS: {_reason(error)}") from None
        if self._out.pending >= _SEND_ABOVE:
            self._push()

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._client.setsockopt(level, option, value)

    def end(self) -> None:
        """Ends TLS, which shows the client that nothing was cut off; waits for no reply."""
        with contextlib.suppress(OSError):
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass
            self._client.settimeout(1)
            self._push()


def _reason(error: ssl.SSLError) -> str:
    """Returns OpenSSL's reason without its source line."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    detail = getattr(error, "verify_message", "")
    return f"{reason}: {detail}" if detail else reason
