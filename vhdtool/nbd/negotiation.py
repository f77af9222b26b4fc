"""The options of a handshake, without sockets: an option in, the bytes of its reply out."""

import struct
from collections.abc import Callable
from typing import Literal

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.protocol import Export

Outcome = Literal["go", "abort", "tls"] | None
TlsState = Literal["none", "required", "on"]
"""The server has no TLS; the client must begin it before anything else; it is on."""
LONGEST_NAME = 4096
"""Bytes of a string, by the protocol."""


class Negotiation:
    """Options negotiated with one client. Every export name means the same disk."""

    def __init__(
        self,
        flags: int,
        export: Callable[[], Export],
        tls: TlsState = "none",
        refusal: Callable[[], str] = str,
    ) -> None:
        """`flags` are the client's. `refusal()` says why it cannot have the export; "": it can.

        Raises WireError for flags that do not exist.
        """
        if flags & ~(wire.CLIENT_FIXED_NEWSTYLE | wire.CLIENT_NO_ZEROES):
            raise wire.WireError(f"unknown client flags {flags:#x}")
        self.structured = False
        self.block_status = False
        self.tls = tls
        self._zeroes = not flags & wire.CLIENT_NO_ZEROES
        self._export = export
        self._refusal = refusal

    def reply(self, option: int, data: bytes) -> tuple[bytes, Outcome]:
        """Returns (bytes to send, what follows: transmission, the end, TLS, or another option)."""
        if self.tls == "required" and option != wire.OPT_ABORT:
            return self._in_clear(option, data)
        if option == wire.OPT_EXPORT_NAME:
            return self._export_name(), "go"
        if option == wire.OPT_ABORT:
            return wire.option_reply(option, wire.REP_ACK), "abort"
        if option in (wire.OPT_GO, wire.OPT_INFO):
            return self._info(option, data)
        if option == wire.OPT_LIST:
            return self._list(data), None
        if option == wire.OPT_STRUCTURED_REPLY:
            return self._structured(data), None
        if option in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
            return self._contexts(option, data), None
        if option == wire.OPT_STARTTLS and self.tls == "on":
            return _invalid(option, "TLS is on already"), None
        return wire.option_reply(option, wire.REP_ERR_UNSUP), None

    def _in_clear(self, option: int, data: bytes) -> tuple[bytes, Outcome]:
        """Refuses each option but STARTTLS, where TLS is required and not on yet.

        Raises WireError for the one option that cannot be refused.
        """
        if option == wire.OPT_EXPORT_NAME:
            raise wire.WireError("a client without TLS, which is required")
        if option != wire.OPT_STARTTLS:
            return wire.option_reply(option, wire.REP_ERR_TLS_REQD, b"TLS comes first"), None
        if data:
            return _invalid(option, "STARTTLS carries no data"), None
        return wire.option_reply(option, wire.REP_ACK), "tls"

    def _export_name(self) -> bytes:
        """Raises WireError where the client is refused, since this option has no error."""
        if refusal := self._refusal():
            raise wire.WireError(refusal)
        export = self._export()
        padding = bytes(124) if self._zeroes else b""
        return struct.pack(">QH", export.size, export.flags) + padding

    def _info(self, option: int, data: bytes) -> tuple[bytes, Outcome]:
        try:
            _, rest = _name(data)
            (count,) = struct.unpack_from(">H", rest)
            if len(rest) != 2 + 2 * count:
                raise ValueError
        except (ValueError, struct.error):
            return _invalid(option, "the option's length does not fit"), None
        if option == wire.OPT_GO and (refusal := self._refusal()):
            return wire.option_reply(option, wire.REP_ERR_POLICY, refusal.encode()), None
        export = self._export()
        about = struct.pack(">HQH", wire.INFO_EXPORT, export.size, export.flags)
        blocks = struct.pack(
            ">HIII", wire.INFO_BLOCK_SIZE, wire.MIN_BLOCK, wire.PREFERRED_BLOCK, wire.MAX_BLOCK
        )
        reply = wire.option_reply(option, wire.REP_INFO, about)
        reply += wire.option_reply(option, wire.REP_INFO, blocks)
        reply += wire.option_reply(option, wire.REP_ACK)
        return reply, "go" if option == wire.OPT_GO else None

    def _list(self, data: bytes) -> bytes:
        option = wire.OPT_LIST
        if data:
            return _invalid(option, "LIST carries no data")
        server = wire.option_reply(option, wire.REP_SERVER, bytes(4))
        return server + wire.option_reply(option, wire.REP_ACK)

    def _structured(self, data: bytes) -> bytes:
        option = wire.OPT_STRUCTURED_REPLY
        if data:
            return _invalid(option, "STRUCTURED_REPLY carries no data")
        self.structured = True
        return wire.option_reply(option, wire.REP_ACK)

    def _contexts(self, option: int, data: bytes) -> bytes:
        listing = option == wire.OPT_LIST_META_CONTEXT
        if not listing:
            self.block_status = False
            if not self.structured:
                return _invalid(option, "structured replies come first")
        try:
            queries = _queries(data)
        except (ValueError, struct.error):
            return _invalid(option, "the option's length does not fit")
        wanted = wire.ALLOCATION
        named = wanted in queries or (listing and (not queries or b"base:" in queries))
        reply = b""
        if named and self._export().extents:
            number = 0 if listing else wire.ALLOCATION_ID
            context = struct.pack(">I", number) + wanted
            reply = wire.option_reply(option, wire.REP_META_CONTEXT, context)
            self.block_status = self.block_status or not listing
        return reply + wire.option_reply(option, wire.REP_ACK)


def _queries(data: bytes) -> set[bytes]:
    """Returns the contexts asked for. Raises ValueError or struct.error for a wrong length."""
    _, rest = _name(data)
    (count,) = struct.unpack_from(">I", rest)
    at = 4
    queries = set()
    for _ in range(count):
        (length,) = struct.unpack_from(">I", rest, at)
        end = at + 4 + length
        if length > LONGEST_NAME or end > len(rest):
            raise ValueError
        queries.add(rest[at + 4 : end])
        at = end
    if at != len(rest):
        raise ValueError
    return queries


def _name(data: bytes) -> tuple[bytes, bytes]:
    """Splits data into a string, which its length precedes, and the rest."""
    (length,) = struct.unpack_from(">I", data)
    if length > LONGEST_NAME or 4 + length > len(data):
        raise ValueError
    return data[4 : 4 + length], data[4 + length :]


def _invalid(option: int, why: str) -> bytes:
    return wire.option_reply(option, wire.REP_ERR_INVALID, why.encode())
