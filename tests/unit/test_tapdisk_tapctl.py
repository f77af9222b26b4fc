"""tap-ctl's messages byte by byte, and its command line, without any process."""

import contextlib
import io
import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdtool.cli import tap_ctl
from vhdtool.tapdisk.events import Events
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.client import Entry, TapCtl, TapctlError
from vhdtool.tapdisk.tapctl.daemon import Daemon
from vhdtool.tapdisk.tapctl.minor_files import MinorFiles
from vhdtool.tapdisk.tapctl.wire import Message, MessageError, Params


def test_the_places_of_the_fields() -> None:
    raw = Message(wire.OPEN, 3, Params(0x202, 3, "vhd:/d", -1, 7, "x").pack()).pack()
    assert len(raw) == 544
    assert struct.unpack_from("=HH", raw) == (7, 3)
    assert struct.unpack_from("=III", raw, 8) == (0x202, 3, 0)
    assert raw[20:27] == b"vhd:/d\0"
    assert struct.unpack_from("=IH", raw, 276) == (0xFFFFFFFF, 7)
    assert raw[282:284] == b"x\0"
    raw = wire.list_entry(0xFFFF, 2, 1, 0x2A, "vhd:/d").pack()
    assert struct.unpack_from("=iii", raw, 8) == (2, 1, 0x2A)
    assert raw[20:27] == b"vhd:/d\0"
    assert struct.unpack_from("=QI", wire.image(wire.OPEN_RSP, 0, 1 << 20).pack(), 8) == (2048, 512)
    assert struct.unpack_from("=HH4xQ", wire.stats(5, 99).pack(), 8) == (0, 0, 99)
    assert struct.unpack_from("=i", wire.response(wire.ERROR, 0, 22).pack(), 8) == (22,)
    assert struct.unpack_from("=i", wire.pid(77, 0).pack(), 8) == (77,)


@given(st.binary(min_size=544, max_size=544))
def test_any_544_bytes_are_read_or_refused(raw: bytes) -> None:
    message = Message.unpack(raw)
    assert (
        Message(message.kind, message.cookie, message.body).pack() == raw[:4] + bytes(4) + raw[8:]
    )
    try:
        params = wire.parse_params(message)
    except MessageError:
        return
    assert "\0" not in params.path


@pytest.mark.parametrize("size", [0, 543, 545])
def test_other_sizes_are_no_messages(size: int) -> None:
    with pytest.raises(MessageError):
        Message.unpack(bytes(size))


def test_a_path_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MessageError, match="longer than the 255 bytes"):
        Params(path="vhd:/" + "x" * 300).pack()


def test_minors_are_files_and_the_lowest_free_one_is_next(tmp_path: Path) -> None:
    taps = TapCtl(tmp_path / "run")
    assert [taps.minors.allocate()[0] for _ in range(3)] == [0, 1, 2]
    taps.minors.free(1)
    minor, path = taps.minors.allocate()
    assert (minor, path) == (1, tmp_path / "run" / "tapdisk" / "tapdisk-1")
    assert taps.entries() == [Entry(minor=0), Entry(minor=1), Entry(minor=2)]
    with pytest.raises(TapctlError) as caught:
        taps.minors.free(9)
    assert caught.value.errno == 2


def test_lines_as_in_a_pipe_and_on_a_terminal() -> None:
    entry = Entry(12, 0, 0x2A, "vhd:/path/with:colon")
    assert tap_ctl.pairs(entry) == "pid=12 minor=0 state=0x2a args=vhd:/path/with:colon"
    assert tap_ctl.pairs(Entry(minor=4)) == "minor=4"
    assert tap_ctl.pairs(Entry(12, 0, 0)) == "pid=12 minor=0 state=0"
    assert tap_ctl.row(entry) == "      12    0 0x2a        vhd /path/with:colon"
    assert tap_ctl.row(Entry(12)) == "      12    -    -          - -"


@pytest.mark.parametrize(
    "words",
    [
        ["open", "-p", "1", "-m", "0"],
        ["open", "-p", "-1", "-m", "0", "-a", "vhd:/d"],
        ["close", "-p", "1"],
        ["free"],
        ["list", "-z"],
        ["create", "-a"],
    ],
)
def test_wrong_usage_exits_with_einval(words: list[str], tmp_path: Path) -> None:
    assert tap_ctl.call(["--run-dir", str(tmp_path), *words]) == 22


def test_a_dead_process_is_enoent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tap_ctl.call(["--run-dir", str(tmp_path), "pause", "-p", "4711", "-m", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", tap_ctl.USAGES)
def test_help_exits_with_zero(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tap_ctl.call([command, "-h"]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).startswith(f"usage: {command}")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["--help"]])
def test_what_is_no_command_gets_the_list_of_them(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tap_ctl.call(words) == 0
    assert "COMMAND := { list | allocate | " in capsys.readouterr().out


def test_why_it_failed_stands_before_the_name_of_the_errno(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["open", "-p", "1", "-m", "0", "-a", "vhd:" + "x" * 300]
    assert tap_ctl.call(["--run-dir", str(tmp_path), *words]) == 36
    why, name = capsys.readouterr().err.splitlines()
    assert "longer than the 255 bytes" in why
    assert name == "File name too long"


@pytest.fixture(scope="module")
def tapdisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("run")
    for _ in range(3):
        MinorFiles(folder / "tapdisk").allocate()
    server = Daemon(folder, True, "a", Events("a", io.StringIO()))
    yield server
    server.stop()


@given(
    kind=st.sampled_from(range(32)),
    minor=st.sampled_from([0, 1, wire.ALL]),
    flags=st.sampled_from([0, wire.RDONLY, wire.ADD_LOG, wire.SECONDARY]),
    path=st.binary(max_size=255) | st.just(b"vhd:/no/\xff\xfe.vhd"),
)
@settings(max_examples=200, deadline=None)
def test_any_path_gets_an_answer(
    tapdisk: Daemon, kind: int, minor: int, flags: int, path: bytes
) -> None:
    body = struct.pack("=III256sIH256s", flags, minor, 0, path, 0, 0, path)
    with socket.socket(socket.AF_UNIX) as client, capture_errors() as errors:
        client.settimeout(10)
        client.connect(str(tapdisk.path))
        client.sendall(Message(kind, minor, body).pack() + path.ljust(wire.LOG_PATH, b"\0"))
        assert len(client.recv(wire.SIZE, socket.MSG_WAITALL)) == wire.SIZE
    assert not errors


@contextlib.contextmanager
def capture_errors() -> Iterator[list[logging.LogRecord]]:
    """Defects that are logged meanwhile."""
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record) if record.exc_info else None  # type: ignore
    logging.getLogger().addHandler(handler)
    try:
        yield told
    finally:
        logging.getLogger().removeHandler(handler)


def test_who_does_not_read_the_answer_holds_up_no_other_request(tapdisk: Daemon) -> None:
    """The answer to a request for a minor leaves after the minor is free for the next one."""
    minor = 2
    for kind in (wire.ATTACH, wire.PAUSE):
        answers = tapdisk.replies(Message(kind, minor, bytes(536)), b"")
        assert Message.unpack(next(answers)).kind == kind + 1
        if kind == wire.PAUSE:
            assert not tapdisk.minor(minor).lock.locked()
