"""The NBD protocol without sockets: bytes to values and back.

Source: the NBD protocol document of the NetworkBlockDevice project (proto.md). Fixed newstyle
handshake and simple replies; everything is big-endian.
"""

import struct
from dataclasses import dataclass

from vhdtool.errors import VhdtoolError

HELLO = struct.pack(">8sQH", b"NBDMAGIC", 0x49484156454F5054, 0b11)
"""Greeting with FIXED_NEWSTYLE and NO_ZEROES."""
OPTION_MAGIC = 0x49484156454F5054
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
OPTION_REPLY_MAGIC = 0x3E889045565A9
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERR_UNSUP, REP_ERR_INVALID, REP_ERR_TOO_BIG = 0x80000001, 0x80000003, 0x80000009
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
REPLY = struct.Struct(">IIQ")
REPLY_MAGIC = 0x67446698
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FLAG_FUA = 1

TRANSMISSION_FLAGS = 1 | 4 | 8 | 32 | 64
"""HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES."""
MIN_BLOCK, PREFERRED_BLOCK, MAX_BLOCK = 512, 4096, 32 << 20
MAX_OPTION = 64 << 10


class WireError(VhdtoolError):
    """The peer does not speak the protocol; the connection has to end."""


@dataclass(frozen=True)
class Request:
    """One request; `length` counts bytes."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int


def parse_request(header: bytes) -> Request:
    """The 28-byte header of a request. Raises WireError when the magic is wrong."""
    magic, flags, command, cookie, offset, length = REQUEST.unpack(header)
    if magic != REQUEST_MAGIC:
        raise WireError(f"NBD request with magic {magic:#x}")
    return Request(command, flags, cookie, offset, length)


def reply(cookie: int, error: int) -> bytes:
    """A simple reply's header; the data of a read follows it."""
    return REPLY.pack(REPLY_MAGIC, error, cookie)


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


def export_reply(size: int) -> bytes:
    """Answer to EXPORT_NAME: size and flags (NO_ZEROES was agreed, so no padding)."""
    return struct.pack(">QH", size, TRANSMISSION_FLAGS)


def info_replies(option: int, size: int) -> bytes:
    """All replies to INFO or GO: export, block sizes, acknowledgement."""
    export = struct.pack(">HQH", INFO_EXPORT, size, TRANSMISSION_FLAGS)
    blocks = struct.pack(">HIII", INFO_BLOCK_SIZE, MIN_BLOCK, PREFERRED_BLOCK, MAX_BLOCK)
    return (
        option_reply(option, REP_INFO, export)
        + option_reply(option, REP_INFO, blocks)
        + option_reply(option, REP_ACK)
    )
