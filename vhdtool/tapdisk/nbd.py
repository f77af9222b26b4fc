"""The NBD server: a thread a client, over a backend that says what a request gives.

The backend raises OSError with the errno that the client shall see; anything else that escapes it
is a defect, answered with EIO and logged, because a guest's disk must never hang on one.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Protocol

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk import nbd_wire as wire

log = logging.getLogger("nbd")

_KNOWN_ERRNOS = {
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
    errno.EINVAL,
    errno.ENOSPC,
    errno.EOVERFLOW,
    errno.ENOTSUP,
    errno.ESHUTDOWN,
}
"""What the protocol lets a server answer; anything else is told as EIO."""


class Backend(Protocol):
    """What a disk does with requests. Offsets and lengths in bytes."""

    def export_size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...


class NbdServer:
    """Listens on a Unix socket (mode 0600) until `stop`."""

    def __init__(self, backend: Backend, path: Path) -> None:
        self.backend = backend
        self.path = path
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._socket = listen_unix(path)
        threading.Thread(target=self._accept, name="nbd-accept", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), name="nbd", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            connection = _Connection(client, self.backend)
            if connection.handshake():
                connection.transmission()
        except (ConnectionError, EOFError):
            pass
        except wire.WireError as error:
            log.warning("client dropped: %s", error)
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()

    def stop(self) -> None:
        """Ends all connections and removes the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.path.unlink(missing_ok=True)


class _Connection:
    def __init__(self, client: socket.socket, backend: Backend) -> None:
        self.client = client
        self.backend = backend
        self.stream = client.makefile("rb", buffering=1 << 16)

    def take(self, length: int) -> bytes:
        data: bytes = self.stream.read(length)
        if len(data) != length:
            raise EOFError
        return data

    def handshake(self) -> bool:
        """Negotiates; True when the client wants the export."""
        self.client.sendall(wire.HELLO)
        if int.from_bytes(self.take(4), "big") & ~3:
            raise wire.WireError("unknown client flags")
        while True:
            option, length = wire.parse_option(self.take(wire.OPTION.size))
            self.take(length)
            size = self.backend.export_size()
            if option == wire.OPT_EXPORT_NAME:
                self.client.sendall(wire.export_reply(size))
                return True
            if option in (wire.OPT_GO, wire.OPT_INFO):
                self.client.sendall(wire.info_replies(option, size))
                if option == wire.OPT_GO:
                    return True
            elif option == wire.OPT_LIST:
                server = wire.option_reply(option, wire.REP_SERVER, bytes(4))
                self.client.sendall(server + wire.option_reply(option, wire.REP_ACK))
            elif option == wire.OPT_ABORT:
                self.client.sendall(wire.option_reply(option, wire.REP_ACK))
                return False
            else:
                self.client.sendall(wire.option_reply(option, wire.REP_ERR_UNSUP))

    def transmission(self) -> None:
        while True:
            request = wire.parse_request(self.take(wire.REQUEST.size))
            if request.command == wire.CMD_DISC:
                return
            if request.command == wire.CMD_WRITE:
                if request.length > wire.MAX_BLOCK:
                    # Its data follows and cannot be skipped at a bounded cost.
                    raise wire.WireError(f"a write of {request.length} bytes")
                payload = self.take(request.length)
            else:
                payload = b""
            error, data = self._answer(request, payload)
            self.client.sendall(wire.reply(request.cookie, error) + data)

    def _answer(self, request: wire.Request, payload: bytes) -> tuple[int, bytes]:
        try:
            return 0, self._do(request, payload)
        except OSError as error:
            code = error.errno or errno.EIO
            return (code if code in _KNOWN_ERRNOS else errno.EIO), b""
        except VhdtoolError as error:
            log.error("request failed: %s", error)
            code = getattr(error, "errno", errno.EIO)
            return (code if code in _KNOWN_ERRNOS else errno.EIO), b""
        except Exception:
            log.exception("defect while answering %s", request)
            return errno.EIO, b""

    def _do(self, request: wire.Request, payload: bytes) -> bytes:
        backend, offset, length = self.backend, request.offset, request.length
        if request.command == wire.CMD_FLUSH:
            backend.flush()
            return b""
        if (
            offset % wire.MIN_BLOCK
            or length % wire.MIN_BLOCK
            or offset + length > backend.export_size()
            or (request.command == wire.CMD_READ and length > wire.MAX_BLOCK)
        ):
            raise OSError(errno.EINVAL, "unaligned, too long or past the end")
        if request.command == wire.CMD_READ:
            return backend.read(offset, length)
        if request.command == wire.CMD_WRITE:
            backend.write(offset, memoryview(payload))
        elif request.command == wire.CMD_WRITE_ZEROES:
            backend.write_zeroes(offset, length)
        elif request.command != wire.CMD_TRIM:
            # A trim is advice; a VHD has no way to give a part of a block back.
            raise OSError(errno.EINVAL, "unknown command")
        if request.flags & wire.FLAG_FUA:
            backend.flush()
        return b""


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner can reach; a stale one is replaced.

    Raises VhdtoolError when something else is there, or a process still listens.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(mode):
            raise VhdtoolError(f"{path}: exists and is no socket; choose another path")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink(missing_ok=True)
            else:
                raise VhdtoolError(f"{path}: in use by another process; end it first")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise VhdtoolError(f"{path}: cannot listen: {error}") from error
    finally:
        os.umask(old)
    listener.listen(64)
    return listener
