"""The control protocol of blktap's tapdisk: 544-byte messages. No I/O.

A connection carries one request and a reply of the same size; a list has several replies, and the
text of `stats` follows its reply. Native byte order, because both ends are on one host. Source:
xapi-project/blktap, include/tapdisk-message.h.
"""

import struct
from dataclasses import dataclass

from vhdtool.errors import VhdtoolError

SIZE = 544
ERROR, PID, PID_RSP, ATTACH, ATTACH_RSP, OPEN, OPEN_RSP = 1, 3, 4, 5, 6, 7, 8
PAUSE, PAUSE_RSP, RESUME, RESUME_RSP, CLOSE, CLOSE_RSP = 9, 10, 11, 12, 13, 14
DETACH, DETACH_RSP, LIST, LIST_RSP, STATS, STATS_RSP = 15, 16, 19, 20, 21, 22
FORCE_SHUTDOWN, DISK_INFO, DISK_INFO_RSP, EXIT = 23, 28, 29, 30
SHARED, RDONLY, ADD_CACHE, VHD_INDEX, ADD_LOG, ADD_LCACHE = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
REUSE_PRT, SECONDARY, STANDBY, NO_O_DIRECT, ENCRYPTED = 0x40, 0x80, 0x100, 0x200, 0x400
CLOSED, QUIESCED, PAUSED, RESUME_FAILED = 0x2, 0x8, 0x20, 0x200
"""Bits of a state as tap-ctl shows it: running is 0, paused 0x2a."""
LOG_PATH = 256
"""Bytes of the trailer of a request with ADD_LOG: the path of the change log."""
ALL = 0xFFFF
_HEAD = struct.Struct("=HH4x")
_PARAMS = struct.Struct("=III256sIH256s")
_RESPONSE = struct.Struct("=i256s")
_IMAGE = struct.Struct("=QII")
_LIST = struct.Struct("=iii256s")
_STAT = struct.Struct("=HH4xQ")


class MessageError(VhdtoolError):
    """Raised for bytes that are not a message of this protocol."""


@dataclass(frozen=True)
class Message:
    """Type, cookie (the minor) and a body of 536 bytes whose meaning depends on the type."""

    kind: int
    cookie: int = 0
    body: bytes = b""

    def pack(self) -> bytes:
        return (_HEAD.pack(self.kind, self.cookie & ALL) + self.body).ljust(SIZE, b"\0")

    @classmethod
    def unpack(cls, raw: bytes) -> "Message":
        """Parses 544 bytes. Raises MessageError for another size."""
        if len(raw) != SIZE:
            raise MessageError(f"a control message has {SIZE} bytes, not {len(raw)}")
        kind, cookie = _HEAD.unpack_from(raw)
        return cls(kind, cookie, raw[_HEAD.size :])


@dataclass(frozen=True)
class Params:
    """The body of a request. `path` is `type:/path/to/file`."""

    flags: int = 0
    minor: int = 0
    path: str = ""
    parent: int = 0
    timeout: int = 0
    secondary: str = ""

    def pack(self) -> bytes:
        return _PARAMS.pack(
            self.flags, self.minor, 0, _text(self.path), self.parent & 0xFFFFFFFF, self.timeout,
            _text(self.secondary),
        )  # fmt: skip


def parse_params(message: Message) -> Params:
    """Returns the body of a request. Raises MessageError for a path without its end."""
    flags, minor, _, path, parent, timeout, secondary = _PARAMS.unpack_from(message.body)
    return Params(flags, minor, _string(path), parent, timeout, _string(secondary))


def response(kind: int, cookie: int, error: int = 0, text: str = "") -> Message:
    """A reply. `error` is 0, or with the kind ERROR a positive errno."""
    return Message(kind, cookie, _RESPONSE.pack(error, encode(text)[:255]))


def parse_response(message: Message) -> tuple[int, str]:
    """Returns (errno, text)."""
    error, text = _RESPONSE.unpack_from(message.body)
    return error, text.split(b"\0", 1)[0].decode("utf-8", "replace")


def image(kind: int, cookie: int, size: int) -> Message:
    """A reply with the size of a disk in bytes."""
    return Message(kind, cookie, _IMAGE.pack(size // 512, 512, 0))


def parse_image(message: Message) -> int:
    """Returns the size of a disk in bytes."""
    sectors, sector_size, _ = _IMAGE.unpack_from(message.body)
    return int(sectors) * int(sector_size)


def list_entry(cookie: int, count: int, minor: int, state: int, path: str) -> Message:
    """One entry of a list; a last one with count 0 and minor -1 ends the list."""
    return Message(LIST_RSP, cookie, _LIST.pack(count, minor, state, _text(path)))


def parse_list_entry(message: Message) -> tuple[int, int, int, str]:
    """Returns (number of entries from this one to the end, minor, state, path)."""
    count, minor, state, path = _LIST.unpack_from(message.body)
    return count, minor, state, _string(path)


def pid(pid: int, cookie: int) -> Message:
    return Message(PID_RSP, cookie, struct.pack("=i", pid))


def parse_pid(message: Message) -> int:
    return int(struct.unpack_from("=i", message.body)[0])


def stats(cookie: int, length: int) -> Message:
    """A reply that `length` bytes of text follow."""
    return Message(STATS_RSP, cookie, _STAT.pack(0, 0, length))


def trailer(flags: int, log: str, key: bytes) -> bytes:
    """Returns the bytes behind a request: the path of a change log; a key behind its size."""
    path = _text(log).ljust(LOG_PATH, b"\0") if flags & ADD_LOG else b""
    return path + (bytes([len(key)]) + key if flags & ENCRYPTED else b"")


def trailer_length(message: Message) -> int:
    """Returns the bytes of a request's trailer that a server reads: the path of a change log."""
    flags = _PARAMS.unpack_from(message.body)[0]
    return LOG_PATH if message.kind in (OPEN, RESUME) and flags & ADD_LOG else 0


def parse_log_path(raw: bytes) -> str:
    """Returns the path of the change log that a trailer names."""
    return _string(raw[:LOG_PATH].ljust(LOG_PATH + 1, b"\0"))


def parse_stats(message: Message) -> int:
    """Returns the length of the text that follows."""
    return int(_STAT.unpack_from(message.body)[2])


def encode(text: str) -> bytes:
    """Encodes text as UTF-8; surrogate escapes become the bytes of the path that they stand for."""
    return text.encode("utf-8", "surrogateescape")


def _text(text: str) -> bytes:
    data = encode(text)
    if len(data) > 255:
        raise MessageError(f"{text[:40]}…: longer than the 255 bytes that a message can hold")
    return data


def _string(raw: bytes) -> str:
    if b"\0" not in raw:
        raise MessageError("a path without an end")
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
