"""A storage behind an NBD server on a Unix socket.

Several threads may use it: each request has a connection for itself, and connections are reused.
The server must offer structured replies, and base:allocation for `extents`.
"""

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from vhdtool.nbd import protocol as wire
from vhdtool.ranges import DataRange, merge_data
from vhdtool.storage.base import Storage, StorageError

LONGEST = 32 << 20
"""Bytes of one read or write."""
LONGEST_WITHOUT_DATA = 1 << 30
"""Bytes of one request for zeroes, trim or block status."""
TIMEOUT = 60.0
"""Seconds to wait for the server."""


class NbdStorage(Storage):
    """The default export of the server at a socket. Raises StorageError.

    Offsets and lengths of all methods are bytes; reads and writes must lie inside the export.
    """

    def __init__(self, socket_path: Path, name: str) -> None:
        self.socket_path = socket_path
        self.name = name
        self.writable = True
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        with self._connection() as first:
            self._size = first.size

    @contextlib.contextmanager
    def _connection(self) -> Iterator["_Connection"]:
        """Gives a connection of the caller's own; one that failed is not used again."""
        with self._lock:
            mine = self._idle.pop() if self._idle else None
        try:
            if mine is None:
                mine = _Connection(self.socket_path, self.name)
            yield mine
        except StorageError:
            raise  # the server reported an error: the connection can be used again
        except (OSError, EOFError, wire.WireError) as error:
            if mine is not None:
                mine.close()
                mine = None
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise StorageError(self.name, "reach the NBD server", number) from None
        finally:
            if mine is not None:
                with self._lock:
                    self._idle.append(mine)

    def pread(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size - offset))
        parts = []
        with self._connection() as one:
            for at, count in _split(offset, length, LONGEST):
                parts.append(one.read(at, count))
        return b"".join(parts)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        with self._connection() as one:
            for at, count in _split(offset, len(view), LONGEST):
                one.request(wire.CMD_WRITE, at, count, view[at - offset : at - offset + count])

    def zero(self, offset: int, length: int) -> None:
        with self._connection() as one:
            for at, count in _split(offset, length, LONGEST_WITHOUT_DATA):
                one.request(wire.CMD_WRITE_ZEROES, at, count)

    def trim(self, offset: int, length: int) -> None:
        """Discards a range."""
        with self._connection() as one:
            for at, count in _split(offset, length, LONGEST_WITHOUT_DATA):
                one.request(wire.CMD_TRIM, at, count)

    def truncate(self, size: int) -> None:
        raise StorageError(self.name, "change the size of an NBD export", errno.ENOTSUP)

    def flush(self) -> None:
        with self._connection() as one:
            one.request(wire.CMD_FLUSH, 0, 0)

    def size(self) -> int:
        return self._size

    def extents(self, offset: int, length: int, most: int) -> list[DataRange]:
        """Returns the first `most` (bytes, holds data) of a range."""
        with self._connection() as one:
            return merge_data(one.extents(offset, offset + length), most)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.close()


def _split(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        count = min(most, end - offset)
        yield offset, count
        offset += count


class _Connection:
    """One connection, one request at a time."""

    def __init__(self, socket_path: Path, name: str) -> None:
        self.name = name
        self.size = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.connect(str(socket_path))
            self._handshake()
        except BaseException:
            self._socket.close()
            raise

    def _handshake(self) -> None:
        magic = self._receive(len(wire.HELLO))[:16]
        if magic != wire.HELLO[:16]:
            raise wire.WireError("no NBD server in newstyle")
        self._socket.sendall(struct.pack(">I", wire.CLIENT_FIXED_NEWSTYLE | wire.CLIENT_NO_ZEROES))
        self._option(wire.OPT_STRUCTURED_REPLY, b"")
        context = struct.pack(">III", 0, 1, len(wire.ALLOCATION)) + wire.ALLOCATION
        self._option(wire.OPT_SET_META_CONTEXT, context)
        self._option(wire.OPT_GO, struct.pack(">IH", 0, 0))

    def _option(self, option: int, data: bytes) -> None:
        """Sends an option, and receives its replies to the last."""
        self._socket.sendall(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        while True:
            header = self._receive(wire.OPTION_REPLY.size)
            magic, _, kind, length = wire.OPTION_REPLY.unpack(header)
            if magic != wire.OPTION_REPLY_MAGIC or length > wire.MAX_OPTION:
                raise wire.WireError(f"a malformed reply to option {option}")
            data = self._receive(length)
            if kind == wire.REP_INFO and data[:2] == struct.pack(">H", wire.INFO_EXPORT):
                self.size = int.from_bytes(data[2:10], "big")
            if kind == wire.REP_ACK:
                return
            if kind & 1 << 31:
                raise wire.WireError(f"the NBD server refuses option {option}: {kind:#x}")

    # requests

    def request(
        self, command: int, offset: int, length: int, payload: memoryview | bytes = b""
    ) -> None:
        """Sends a request whose reply has no data."""
        for _ in self._chunks(command, offset, length, payload):
            raise wire.WireError(f"a reply to command {command} with data")

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        for kind, body in self._chunks(wire.CMD_READ, offset, length):
            at = int.from_bytes(body[:8], "big") - offset
            if kind == wire.CHUNK_OFFSET_DATA and 0 <= at <= length - (len(body) - 8):
                data[at : at + len(body) - 8] = body[8:]
        return bytes(data)

    def extents(self, offset: int, end: int) -> Iterator[DataRange]:
        """Yields the ranges of [offset, end), as the server splits them."""
        while offset < end:
            for length, data in self._block_status(offset, min(end - offset, LONGEST_WITHOUT_DATA)):
                length = min(length, end - offset)
                offset += length
                yield length, data

    def _block_status(self, offset: int, length: int) -> list[DataRange]:
        """Returns the first ranges from `offset`, at least one."""
        found = []
        for kind, body in self._chunks(wire.CMD_BLOCK_STATUS, offset, length):
            if kind == wire.CHUNK_BLOCK_STATUS:
                for count, bits in struct.iter_unpack(">II", body[4:]):
                    found.append((count, not bits & wire.STATE_HOLE))
        if not found or not all(count for count, _ in found):
            raise wire.WireError("the NBD server reports no block status")
        return found

    def _chunks(
        self, command: int, offset: int, length: int, payload: memoryview | bytes = b""
    ) -> Iterator[tuple[int, bytes]]:
        """Sends a request; yields (kind, body) of each chunk of its reply that has a body."""
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, 0, offset, length)
        self._socket.sendall(head)
        if payload:
            self._socket.sendall(payload)
        failed = 0
        while True:
            magic = self._receive(4)
            if magic == wire.REPLY_MAGIC.to_bytes(4, "big"):
                failed = int.from_bytes(self._receive(12)[:4], "big")
                break
            rest = self._receive(wire.CHUNK.size - 4)
            number, flags, kind, _, size = wire.CHUNK.unpack(magic + rest)
            if number != wire.CHUNK_MAGIC or size > LONGEST + 8:
                raise wire.WireError("a malformed reply")
            body = self._receive(size)
            if kind & 1 << 15:
                failed = int.from_bytes(body[:4], "big")
            elif kind != wire.CHUNK_NONE:
                yield kind, body
            if flags & wire.CHUNK_DONE:
                break
        if failed:
            raise StorageError(self.name, f"serve {length} bytes at {offset}", failed)

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            count = self._socket.recv_into(view[at:])
            if not count:
                raise EOFError
            at += count
        return bytes(data)

    def close(self) -> None:
        self._socket.close()
