"""The NBD protocol without sockets: bytes to values and back.

Source: the NBD protocol document of the NetworkBlockDevice project (proto.md). Fixed newstyle
handshake, simple and structured replies; everything is big-endian.
"""

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vhdtool.errors import VhdtoolError

HELLO = struct.pack(">8sQH", b"NBDMAGIC", 0x49484156454F5054, 0b11)
"""Greeting with FIXED_NEWSTYLE and NO_ZEROES."""
CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES = 1, 2
OPTION_MAGIC = 0x49484156454F5054
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
OPTION_REPLY_MAGIC = 0x3E889045565A9
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 8, 9, 10
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERR_UNSUP, REP_ERR_POLICY = 0x80000001, 0x80000002
REP_ERR_INVALID, REP_ERR_TLS_REQD = 0x80000003, 0x80000005
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
REPLY = struct.Struct(">IIQ")
REPLY_MAGIC = 0x67446698
CHUNK = struct.Struct(">IHHQI")
CHUNK_MAGIC = 0x668E33EF
CHUNK_DONE = 1
CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_BLOCK_STATUS, CHUNK_ERROR = 0, 1, 5, 0x8001
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = 0, 1, 2, 3, 4
CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 5, 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8, 16
COMMAND_FLAGS = {
    CMD_READ: FLAG_FUA | FLAG_DF,
    CMD_WRITE: FLAG_FUA,
    CMD_FLUSH: FLAG_FUA,
    CMD_TRIM: FLAG_FUA,
    CMD_CACHE: FLAG_FUA,
    CMD_WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: FLAG_FUA | FLAG_REQ_ONE,
}
"""Command -> the flags that it may carry; a request with others fails with EINVAL."""

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM = 1, 2, 4, 8, 32
SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO = 64, 128, 256, 1024, 2048
STATE_HOLE, STATE_ZERO = 1, 2
"""Bits of an extent in the context base:allocation."""
MIN_BLOCK, PREFERRED_BLOCK, MAX_BLOCK = 512, 4096, 32 << 20
MAX_OPTION = 64 << 10
ALLOCATION = b"base:allocation"
ALLOCATION_ID = 1
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
_LIKE_A_FULL_DISK = (errno.EDQUOT, errno.EFBIG)


class WireError(VhdtoolError):
    """The peer does not speak the protocol; the connection has to end."""


class Request(NamedTuple):
    """One request; `length` counts bytes."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int


def parse_request(header: bytes | bytearray | memoryview) -> Request:
    """The 28-byte header of a request. Raises WireError when the magic is wrong."""
    magic, flags, command, cookie, offset, length = REQUEST.unpack(header)
    if magic != REQUEST_MAGIC:
        raise WireError(f"NBD request with magic {magic:#x}")
    return Request(command, flags, cookie, offset, length)


def wire_errno(number: int) -> int:
    """The error that the protocol has for an errno; EIO for those that it does not know."""
    if number in _LIKE_A_FULL_DISK:
        return errno.ENOSPC
    return number if number in _KNOWN_ERRNOS else errno.EIO


def reply(cookie: int, error: int) -> bytes:
    """A simple reply's header; the data of a read follows it."""
    return REPLY.pack(REPLY_MAGIC, error, cookie)


def done_chunk(cookie: int) -> bytes:
    """A structured reply that says only that it was done."""
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_NONE, cookie, 0)


def data_chunk(cookie: int, offset: int, length: int, last: bool = True) -> bytes:
    """The header of a chunk of a read; `length` bytes of data follow it."""
    done = CHUNK_DONE if last else 0
    head = CHUNK.pack(CHUNK_MAGIC, done, CHUNK_OFFSET_DATA, cookie, 8 + length)
    return head + offset.to_bytes(8, "big")


def error_chunk(cookie: int, error: int, message: str) -> bytes:
    """A structured reply with an errno and a sentence for the user."""
    text = message.encode(errors="replace")[:4000].decode(errors="ignore").encode()
    head = CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_ERROR, cookie, 6 + len(text))
    return head + struct.pack(">IH", error, len(text)) + text


def status_chunk(cookie: int, extents: Iterable[tuple[int, int]]) -> bytes:
    """Block status: (bytes, STATE bits) of ranges that follow each other."""
    body = b"".join(struct.pack(">II", length, state) for length, state in extents)
    size = 4 + len(body)
    head = CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_BLOCK_STATUS, cookie, size)
    return head + struct.pack(">I", ALLOCATION_ID) + body


@dataclass(frozen=True)
class Export:
    """What the server says of its one export; `size` in bytes."""

    size: int
    read_only: bool = False
    extents: bool = False
    trim: bool = False
    cache: bool = False

    @property
    def flags(self) -> int:
        """Transmission flags."""
        both = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_DF | CAN_MULTI_CONN
        both |= SEND_CACHE if self.cache else 0
        if self.read_only:
            return both | READ_ONLY
        return both | SEND_WRITE_ZEROES | SEND_FAST_ZERO | (SEND_TRIM if self.trim else 0)


def parse_option(header: bytes) -> tuple[int, int]:
    """(option, length of its data). Raises WireError on a wrong magic or an absurd length."""
    magic, option, length = OPTION.unpack(header)
    if magic != OPTION_MAGIC:
        raise WireError(f"NBD option with magic {magic:#x}")
    if length > MAX_OPTION:
        raise WireError(f"NBD option {option} with {length} bytes")
    return option, length


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data
