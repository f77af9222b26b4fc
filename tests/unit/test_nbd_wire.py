"""The NBD layer without sockets: negotiation, requests and replies, and whatever a client sends."""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdtool.nbd import protocol as wire
from vhdtool.nbd.negotiation import Negotiation
from vhdtool.nbd.protocol import Export, WireError

EXPORT = Export(1 << 20, extents=True)


def negotiation(flags: int = 3, export: Export = EXPORT) -> Negotiation:
    return Negotiation(flags, lambda: export)


def test_before_tls_nothing_but_tls_and_the_end_is_granted() -> None:
    agreed = Negotiation(3, lambda: EXPORT, "required")
    refused = (wire.OPT_LIST, wire.OPT_GO, wire.OPT_INFO, wire.OPT_STRUCTURED_REPLY, 8, 9, 10, 77)
    for option in refused:
        reply, outcome = agreed.reply(option, info())
        assert [kind for _, kind, _ in replies(reply)] == [wire.REP_ERR_TLS_REQD]
        assert outcome is None
    assert not agreed.structured
    with pytest.raises(WireError, match="without TLS"):
        agreed.reply(wire.OPT_EXPORT_NAME, b"")
    reply, outcome = agreed.reply(wire.OPT_STARTTLS, b"x")
    assert (replies(reply)[0][1], outcome) == (wire.REP_ERR_INVALID, None)
    ack = wire.option_reply(wire.OPT_STARTTLS, wire.REP_ACK)
    assert agreed.reply(wire.OPT_STARTTLS, b"") == (ack, "tls")
    assert agreed.reply(wire.OPT_ABORT, b"")[1] == "abort"


@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=40)), max_size=20))
@settings(max_examples=200)
def test_no_words_in_clear_lead_to_the_disk(options: list[tuple[int, bytes]]) -> None:
    agreed = Negotiation(3, lambda: EXPORT, "required")
    for option, data in options:
        try:
            reply, outcome = agreed.reply(option, data)
        except WireError:
            return
        assert outcome in (None, "abort", "tls")
        kinds = {kind for _, kind, _ in replies(reply)}
        allowed = {wire.REP_ERR_TLS_REQD, wire.REP_ERR_INVALID}
        assert kinds <= allowed or (kinds == {wire.REP_ACK} and outcome is not None)
        assert (agreed.structured, agreed.block_status) == (False, False)


def test_tls_is_begun_once_and_only_where_the_server_has_it() -> None:
    on = Negotiation(3, lambda: EXPORT, "on")
    reply, outcome = on.reply(wire.OPT_STARTTLS, b"")
    assert (replies(reply)[0][1], outcome) == (wire.REP_ERR_INVALID, None)
    assert on.reply(wire.OPT_GO, info())[1] == "go"
    reply, outcome = negotiation().reply(wire.OPT_STARTTLS, b"")
    assert (replies(reply)[0][1], outcome) == (wire.REP_ERR_UNSUP, None)


def replies(raw: bytes) -> list[tuple[int, int, bytes]]:
    """(option, kind, data) of each reply; raises when they are not well formed."""
    found = []
    while raw:
        magic, option, kind, length = wire.OPTION_REPLY.unpack_from(raw)
        assert magic == wire.OPTION_REPLY_MAGIC
        data, raw = raw[20 : 20 + length], raw[20 + length :]
        assert len(data) == length
        found.append((option, kind, data))
    return found


def info(name: bytes = b"", *wanted: int) -> bytes:
    head = struct.pack(">I", len(name)) + name + struct.pack(">H", len(wanted))
    return head + b"".join(struct.pack(">H", one) for one in wanted)


def contexts(*queries: bytes, name: bytes = b"") -> bytes:
    out = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return out + b"".join(struct.pack(">I", len(query)) + query for query in queries)


@pytest.mark.parametrize("name", [b"", b"any", "größe".encode()])
def test_go_tells_size_flags_and_block_sizes_for_any_name(name: bytes) -> None:
    raw, outcome = negotiation().reply(wire.OPT_GO, info(name, wire.INFO_BLOCK_SIZE))
    assert outcome == "go"
    (_, _, about), (_, _, blocks), (_, last, _) = replies(raw)
    assert struct.unpack(">HQH", about) == (wire.INFO_EXPORT, 1 << 20, EXPORT.flags)
    assert struct.unpack(">HIII", blocks) == (wire.INFO_BLOCK_SIZE, 512, 4096, 32 << 20)
    assert last == wire.REP_ACK


def test_info_tells_the_same_and_goes_on() -> None:
    one = negotiation()
    assert one.reply(wire.OPT_INFO, info())[1] is None
    assert one.reply(wire.OPT_GO, info())[1] == "go"


def test_flags_of_a_read_only_export_offer_no_change() -> None:
    flags = Export(512, read_only=True).flags
    assert flags & wire.READ_ONLY
    assert not flags & (wire.SEND_TRIM | wire.SEND_WRITE_ZEROES | wire.SEND_FAST_ZERO)
    assert EXPORT.flags & wire.CAN_MULTI_CONN
    assert not EXPORT.flags & (wire.SEND_TRIM | wire.SEND_CACHE)
    both = Export(512, trim=True, cache=True)
    assert both.flags & wire.SEND_TRIM
    assert both.flags & wire.SEND_CACHE


def test_an_export_name_reply_is_padded_by_default() -> None:
    short, outcome = negotiation(3).reply(wire.OPT_EXPORT_NAME, b"x")
    assert outcome == "go"
    assert len(short) == 10
    assert negotiation(1).reply(wire.OPT_EXPORT_NAME, b"x")[0] == short + bytes(124)


def test_unknown_client_flags_end_the_connection() -> None:
    with pytest.raises(WireError):
        negotiation(4)


@pytest.mark.parametrize("option", [0, 4, 5, 11, 99, 0xFFFFFFFF])
def test_unknown_options_are_unsupported(option: int) -> None:
    raw, outcome = negotiation().reply(option, b"whatever")
    assert outcome is None
    assert replies(raw) == [(option, wire.REP_ERR_UNSUP, b"")]


def test_block_status_needs_structured_replies() -> None:
    one = negotiation()
    raw, _ = one.reply(wire.OPT_SET_META_CONTEXT, contexts(wire.ALLOCATION))
    assert replies(raw)[0][1] == wire.REP_ERR_INVALID
    assert not one.block_status
    one.reply(wire.OPT_STRUCTURED_REPLY, b"")
    raw, _ = one.reply(wire.OPT_SET_META_CONTEXT, contexts(b"qemu:x", wire.ALLOCATION))
    assert replies(raw) == [
        (10, wire.REP_META_CONTEXT, struct.pack(">I", wire.ALLOCATION_ID) + wire.ALLOCATION),
        (10, wire.REP_ACK, b""),
    ]
    assert one.block_status
    # The last one counts.
    one.reply(wire.OPT_SET_META_CONTEXT, contexts())
    assert not one.block_status


def test_a_backend_without_extents_offers_no_context() -> None:
    one = negotiation(export=Export(512))
    one.reply(wire.OPT_STRUCTURED_REPLY, b"")
    raw, _ = one.reply(wire.OPT_SET_META_CONTEXT, contexts(wire.ALLOCATION))
    assert [kind for _, kind, _ in replies(raw)] == [wire.REP_ACK]
    assert not one.block_status


@pytest.mark.parametrize("queries", [(), (b"base:",), (wire.ALLOCATION,)])
def test_contexts_can_be_listed(queries: tuple[bytes, ...]) -> None:
    raw, _ = negotiation().reply(wire.OPT_LIST_META_CONTEXT, contexts(*queries))
    assert [kind for _, kind, _ in replies(raw)] == [wire.REP_META_CONTEXT, wire.REP_ACK]


@pytest.mark.parametrize("option", [3, 6, 7, 8, 9, 10])
@given(data=st.binary(max_size=60))
def test_any_bytes_in_an_option_get_a_well_formed_answer(option: int, data: bytes) -> None:
    one = negotiation()
    one.structured = True
    raw, _ = one.reply(option, data)
    assert all(answered == option for answered, _, _ in replies(raw))
    assert replies(raw)


@given(st.binary(min_size=28, max_size=28))
def test_any_bytes_are_a_request_or_an_end(raw: bytes) -> None:
    try:
        request = wire.parse_request(raw)
    except WireError:
        assert raw[:4] != struct.pack(">I", wire.REQUEST_MAGIC)
    else:
        head = wire.REQUEST_MAGIC, request.flags, request.command
        assert wire.REQUEST.pack(*head, *request[2:]) == raw


@given(st.binary(min_size=16, max_size=16))
def test_any_bytes_are_an_option_or_an_end(raw: bytes) -> None:
    try:
        _, length = wire.parse_option(raw)
    except WireError:
        return
    assert length <= wire.MAX_OPTION


@given(st.text(max_size=9000))
@settings(max_examples=30)
def test_an_error_fits_whatever_its_words(text: str) -> None:
    raw = wire.error_chunk(7, errno.EIO, text)
    magic, flags, kind, cookie, length = wire.CHUNK.unpack_from(raw)
    code, size = struct.unpack_from(">IH", raw, 20)
    assert (magic, flags, kind, cookie) == (wire.CHUNK_MAGIC, 1, wire.CHUNK_ERROR, 7)
    assert len(raw) == 20 + length == 26 + size
    assert code == errno.EIO
    assert size <= 4096
    raw[26:].decode()


def test_errnos_that_the_protocol_lacks() -> None:
    assert wire.wire_errno(errno.EDQUOT) == errno.ENOSPC
    assert wire.wire_errno(errno.EFBIG) == errno.ENOSPC
    assert wire.wire_errno(errno.ESTALE) == errno.EIO
    assert wire.wire_errno(errno.EPERM) == errno.EPERM
