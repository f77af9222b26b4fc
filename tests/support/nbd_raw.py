"""A small NBD client that can also do what no client should."""

import fcntl
import socket
import struct
import sys
import termios
from pathlib import Path
from typing import Any, cast

from tests.support.waiting import wait_for, wait_until_stable
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.sockets import TcpAddress


class Client:
    """Connects, negotiates and asks. `message` is the sentence of the last structured error."""

    def __init__(
        self,
        place: Path | TcpAddress | tuple[str, int],
        structured: bool = False,
        allocation: bool = False,
    ) -> None:
        unix = isinstance(place, Path)
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.socket.settimeout(10)
        self.structured = structured
        self.message = ""
        self.flags = 0
        """What the server announced."""
        self._cookie = 0
        self._answered = 0
        try:
            self.socket.connect(str(place) if unix else cast(Any, place))
            self._negotiate(structured, allocation)
        except BaseException:
            self.socket.close()
            raise

    def _negotiate(self, structured: bool, allocation: bool) -> None:
        assert self.take(18) == wire.HELLO
        self.socket.sendall(b"\0\0\0\3")
        if structured:
            self.option(wire.OPT_STRUCTURED_REPLY, b"")
        if allocation:
            name = wire.ALLOCATION
            self.option(wire.OPT_SET_META_CONTEXT, struct.pack(">III", 0, 1, len(name)) + name)
        about = struct.pack(">H", wire.INFO_EXPORT)
        for info in self.option(wire.OPT_GO, bytes(6)):
            if info.startswith(about):
                self.flags = int(struct.unpack(">HQH", info)[2])

    def option(self, number: int, data: bytes) -> list[bytes]:
        """The data of each reply."""
        told = []
        self.socket.sendall(wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data)) + data)
        kind = 0
        while kind != wire.REP_ACK:
            _, _, kind, length = wire.OPTION_REPLY.unpack(self.take(20))
            told.append(self.take(length))
            assert kind < 1 << 31, f"option {number} was refused: {kind:#x}"
        return told

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def unread(self) -> int:
        """Bytes that the server has sent and that nobody has taken."""
        size = fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4))
        return int.from_bytes(size, sys.byteorder)

    def wait_until_full(self) -> None:
        """Return when the server sends no more, since nobody takes what it has sent."""
        wait_for(self.unread)
        wait_until_stable(self.unread, interval=0.1)

    def send(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
    ) -> None:
        self._cookie += 1
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self.socket.sendall(head + data)

    def send_together(self, *requests: tuple[int, int, int]) -> None:
        """Requests (command, offset, length) that reach the server in one piece."""
        raw = b""
        for command, offset, length in requests:
            self._cookie += 1
            raw += wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        self.socket.sendall(raw)

    def receive(self, command: int, length: int) -> tuple[int, bytes]:
        """(errno, data) of the next answer, which must be the one to the oldest request."""
        self._answered += 1
        if not self.structured:
            magic, error, cookie = wire.REPLY.unpack(self.take(16))
            assert (magic, cookie) == (wire.REPLY_MAGIC, self._answered)
            return error, self.take(length) if command == wire.CMD_READ and not error else b""
        data = b""
        while True:
            magic, flags, kind, cookie, size = wire.CHUNK.unpack(self.take(20))
            assert (magic, cookie) == (wire.CHUNK_MAGIC, self._answered)
            body = self.take(size)
            if kind == wire.CHUNK_ERROR:
                assert flags == wire.CHUNK_DONE
                error, words = struct.unpack_from(">IH", body)
                self.message = body[6 : 6 + words].decode()
                return error, b""
            # A read may come in several chunks, which the server sends in their order.
            data += body[8:] if kind == wire.CHUNK_OFFSET_DATA else body
            if flags == wire.CHUNK_DONE:
                return 0, data

    def ask(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0
    ) -> tuple[int, bytes]:
        self.send(command, offset, length, flags)
        return self.receive(command, length)

    def read(self, offset: int, length: int) -> bytes:
        error, data = self.ask(wire.CMD_READ, offset, length)
        assert not error
        return data

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        self.send(wire.CMD_WRITE, offset, len(data), flags, data)
        return self.receive(wire.CMD_WRITE, len(data))[0]

    def close(self) -> None:
        try:
            self.send(wire.CMD_DISC)
        except OSError:
            pass
        self.socket.close()
