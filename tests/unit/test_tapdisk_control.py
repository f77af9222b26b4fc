"""The control socket and the events: one order, no wait for who does not read, no traceback."""

import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nbd_raw import Client
from tests.support.shims import SIZE, Shim, empty_image, owner
from tests.support.waiting import wait_for
from vhdtool.errors import VhdtoolError
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease
from vhdtool.storage import MemoryStorage
from vhdtool.tapdisk import events as events_module
from vhdtool.tapdisk.access import Settings
from vhdtool.tapdisk.control import MAX_LINE, Control
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.events import Events, Outbox


class Rig:
    """A control socket over an image in memory, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.out = io.StringIO()
        self.image: MemoryStorage = empty_image()
        self.events = Events("a", self.out)
        self.path = folder / "disk.vhd"
        self.disk = TapDisk(
            Settings(
                guard=True,
                open_storage=lambda path, access, kind: self.image,
                open_lease=lambda path: EpochLease(EpochRecord(path), owner("a")),
                emit=self.events.emit,
            )
        )
        self.socket = folder / "c.ctl"
        self.control = Control(self.disk, self.events, self.socket, folder / "c.nbd")
        self.export = folder / "c.nbd"
        self.connections: list[socket.socket] = []
        self.lines = self.connect()

    def connect(self) -> Any:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(self.socket))
        self.connections.append(client)
        return client.makefile("rwb", buffering=0)

    def raw(self, line: bytes) -> dict[str, Any]:
        self.lines.write(line + b"\n")
        while True:
            message: dict[str, Any] = json.loads(self.lines.readline())
            if "event" not in message:
                return message

    def do(self, op: str, **more: Any) -> dict[str, Any]:
        return self.raw(json.dumps({"id": 1, "op": op, **more}).encode())

    def attach(self) -> None:
        assert "ok" in self.do("attach", path=str(self.path), size=SIZE)

    def end(self) -> None:
        for client in self.connections:
            client.close()
        self.lines.close()
        try:
            self.control.stop()
        except VhdtoolError:
            pass


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.end()


def test_a_life_over_the_socket(rig: Rig) -> None:
    rig.attach()
    assert rig.do("activate")["ok"]["state"] == "active"
    client = Client(rig.export)
    assert client.write(0, b"x" * 512) == 0
    assert rig.do("pause")["ok"]["state"] == "paused"
    assert rig.do("unpause")["ok"]["epoch"] == 3
    assert client.read(0, 512) == b"x" * 512
    assert rig.do("deactivate", queue=True)["ok"]["lease"] is False
    assert rig.do("detach")["ok"]["state"] == "detached"
    assert not rig.export.exists()
    client.close()


def test_refusals_carry_their_type_and_sentence(rig: Rig) -> None:
    error = rig.do("activate")["error"]
    assert error["type"] == "StateError"
    assert "must be attached" in error["message"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b'{"op": 3}',
        b'{"op": "attach"}',
        b'{"op": "attach", "path": 3, "size": 512}',
        b'{"op": "attach", "path": "/x", "size": "many"}',
        b'{"op": "attach", "path": "/x", "size": 1e400}',
        b'{"op": "attach", "path": "/nul\\u0000", "size": 512}',
        b'{"op": "attach", "path": "/no/such/dir/x", "size": 512}',
        b'{"op": "attach", "path": "", "size": 512}',
        b'{"op": "export", "size": -1}',
        b'{"op": "open", "mode": []}',
        b'{"op": "__init__"}',
        b"\xff\xfe",
        b"[" * 30000,
    ],
)
def test_bad_requests_get_one_sentence(
    rig: Rig, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = rig.raw(line)
    assert answer["error"]["message"]
    assert rig.do("status")["ok"]["state"] == "detached"
    assert "defect" not in caplog.text


@pytest.mark.parametrize(
    "name", [b"d\xff.vhd", b"d\\udcff.vhd"], ids=["as bytes", "as Python says it"]
)
def test_a_path_need_not_be_utf_8(rig: Rig, tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    answer = rig.raw(b'{"id": 1, "op": "attach", "path": "%s", "size": %d}' % (path, SIZE))
    assert answer["ok"]["path"] == f"{tmp_path}/d\udcff.vhd"
    assert rig.do("activate")["ok"]["state"] == "active"
    assert rig.do("detach")["ok"]["state"] == "detached"


@pytest.mark.parametrize("path", [b'"\\ud800"', b'"a\\u0000b"', b"7", b"null", b'["a"]'])
@pytest.mark.parametrize("name", [b"path", b"record"])
def test_what_no_file_is_called_is_refused(rig: Rig, name: bytes, path: bytes) -> None:
    line = b'{"op": "attach", "path": "/no", "size": 512, %s: %s}' % (b'"%s"' % name, path)
    error = rig.raw(line)["error"]
    assert error["type"] == "UsageError"
    assert "is no path" in error["message"]
    assert rig.do("status")["ok"]["state"] == "detached"


@given(st.binary(max_size=200).filter(lambda raw: b"\n" not in raw))
@settings(max_examples=100, deadline=None)
def test_any_line_gets_an_answer(raw: bytes) -> None:
    rig = _shared_rig()
    rig.lines.write(raw + b"\n")
    assert "error" in json.loads(rig.lines.readline())


_rigs: list[Rig] = []


def _shared_rig() -> Rig:
    if not _rigs:
        import tempfile

        _rigs.append(Rig(Path(tempfile.mkdtemp())))
    return _rigs[0]


def teardown_module() -> None:
    for one in _rigs:
        one.end()


def test_an_endless_line_ends_the_connection(rig: Rig) -> None:
    other = rig.connect()
    try:
        other.write(b"x" * (MAX_LINE + 10))
        assert other.readline() == b""
    except OSError:
        pass
    other.close()
    assert "ok" in rig.do("status")


def test_events_come_before_the_answer_of_their_operation(rig: Rig) -> None:
    rig.do("events")
    rig.lines.write(json.dumps({"op": "attach", "path": str(rig.path), "size": SIZE}).encode())
    rig.lines.write(b"\n")
    first, second = json.loads(rig.lines.readline()), json.loads(rig.lines.readline())
    assert first["event"] == "attached"
    assert "ok" in second
    logged = json.loads(rig.out.getvalue().splitlines()[0])
    assert logged == first
    assert {"mono", "wall", "pid", "host"} <= set(first)


def test_a_listener_that_does_not_read_holds_up_no_request(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "MOST_BACKLOG", 200_000)
    stuck = rig.connect()
    stuck.write(b'{"op": "events"}\n')
    assert b"ok" in stuck.readline()
    started = time.monotonic()
    for number in range(5000):
        rig.events.emit("allocated", block=number, sector=number)
    assert time.monotonic() - started < 5
    assert rig.events.listeners == 0
    assert "ok" in rig.do("status")
    stuck.close()


def test_a_slow_listener_gets_every_event_in_order(rig: Rig) -> None:
    listener = rig.connect()
    listener.write(b'{"op": "events"}\n')
    assert b"ok" in listener.readline()
    for number in range(5000):
        rig.events.emit("allocated", block=number)
    for number in range(5000):
        assert json.loads(listener.readline())["block"] == number
    listener.close()


def test_a_listener_that_has_gone_is_forgotten(rig: Rig) -> None:
    gone = rig.connect()
    gone.write(b'{"op": "events"}\n')
    gone.readline()
    gone.close()
    rig.connections[-1].close()

    def forgotten() -> bool:
        rig.events.emit("attached")
        return rig.events.listeners == 0

    wait_for(forgotten)


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_log_fails_no_request(tmp_path: Path) -> None:
    events = Events("a", Full())
    heard: list[str] = []
    events.listen(heard.append)
    events.emit("attached")
    events.emit("detached")
    assert [json.loads(line)["event"] for line in heard] == ["attached", "detached"]


def test_a_log_that_nobody_reads_holds_up_no_disk() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as out:
        events = Events("a", out)
        for number in range(2000):
            events.emit("allocated", block=number)
        # Later it is read: all is there, in order.
        seen = []
        with open(reader) as lines:
            for line in lines:
                seen.append(json.loads(line)["block"])
                if len(seen) == 2000:
                    break
        assert seen == list(range(2000))


def test_a_lost_log_reader_ends_the_log_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as out:
        events = Events("a", out)
        os.close(reader)
        for _ in range(3):
            events.emit("flushed")
    assert caplog.text.count("events are no longer logged") == 1


def test_status_answers_while_an_operation_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.attach()
    begun, go = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go.wait(10)

    monkeypatch.setattr(rig.disk, "probe", slow)
    other = rig.connect()
    other.write(b'{"op": "probe"}\n')
    assert begun.wait(10)
    assert rig.do("status")["ok"]["state"] == "attached"
    go.set()
    assert b"ok" in other.readline()
    other.close()


def test_exit_ends_the_process_even_when_closing_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.attach()

    def fails(disconnect: object) -> None:
        raise VhdtoolError("no space")

    monkeypatch.setattr(rig.disk, "detach", fails)
    assert rig.do("exit")["error"]["message"] == "no space"
    assert rig.control.ended.is_set()
    monkeypatch.undo()


def test_an_export_socket_in_use_detaches_again(rig: Rig) -> None:
    rig.export.write_text("mine")
    assert "no socket" in rig.do("attach", path=str(rig.path), size=SIZE)["error"]["message"]
    assert rig.do("status")["ok"]["state"] == "detached"
    rig.export.unlink()
    rig.attach()


def test_an_outbox_keeps_the_order_under_threads() -> None:
    here, there = socket.socketpair()
    outbox = Outbox(here)
    lock = threading.Lock()
    sent: list[str] = []

    def work(name: int) -> None:
        for number in range(300):
            with lock:
                line = json.dumps([name, number, "x" * 500])
                sent.append(line)
                outbox.send(line)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    with there.makefile("r") as lines:
        got = [lines.readline().rstrip("\n") for _ in range(1200)]
    for thread in threads:
        thread.join()
    assert got == sent
    outbox.close()
    with pytest.raises(ConnectionError):
        outbox.send("more")
    here.close()
    there.close()


def test_stop_removes_both_sockets_and_closes_the_image(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.attach()
    rig.do("activate")
    client = Client(rig.export)
    client.write(0, b"x" * 512)
    rig.control.stop()
    assert list(tmp_path.glob("c.*")) == []
    other = Shim("b", rig.image, tmp_path).activated()
    assert other.read(0, 512) == b"x" * 512
    other.detach()
    client.socket.close()
    rig.end()
