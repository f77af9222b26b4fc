"""The accept loop of all servers: who gives way when it is full, and what it survives."""

import contextlib
import errno
import json
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nbd_raw import Client
from tests.support.waiting import wait_for
from vhdtool.nbd import accept
from vhdtool.nbd import protocol as wire
from vhdtool.nbd import server as nbd_server
from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.server import NbdServer
from vhdtool.nbd.sockets import TcpAddress, keep_alive, listen_unix
from vhdtool.tapdisk.service.metrics_http import MetricsServer

MOST = 4


class Zeros(Backend):
    """A backend that holds reads while `hold` is not set."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self.reads = 0

    def export_size(self) -> int:
        return 1 << 20

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        self.hold.wait(20)
        return bytes(length)

    def write(self, offset: int, data: memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...


@pytest.fixture
def backend() -> Zeros:
    return Zeros()


@pytest.fixture
def server(backend: Zeros, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NbdServer]:
    """A server that has MOST connections; no connection is too young to be idle."""
    monkeypatch.setattr(nbd_server, "MOST_CLIENTS", MOST)
    monkeypatch.setattr(accept, "LEAST_IDLE", 0.0)
    one = NbdServer(backend, tmp_path / "s")
    yield one
    backend.hold.set()
    one.stop()


@pytest.fixture
def place(server: NbdServer) -> Path:
    """The socket of the server."""
    assert isinstance(server.address, Path)
    return server.address


def silent(place: Path) -> socket.socket:
    """A client that connects, takes the greeting and says nothing."""
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(10)
    one.connect(str(place))
    assert len(one.recv(18)) == 18
    return one


def is_ended(one: socket.socket) -> bool:
    one.settimeout(0.1)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_silent_clients_give_way_first_the_oldest(place: Path) -> None:
    settled = Client(place)
    silents = [silent(place) for _ in range(MOST - 1)]
    late = Client(place)
    assert [is_ended(one) for one in silents] == [True, False, False]
    assert late.read(0, 512) == settled.read(0, 512) == bytes(512)
    for one in (*silents, settled.socket, late.socket):
        one.close()


def test_then_who_has_been_idle_longest(server: NbdServer, place: Path) -> None:
    clients = [Client(place) for _ in range(MOST)]
    for number in (2, 0, 3, 1):
        clients[number].read(0, 512)
        wait_for(lambda: server.idle_clients == MOST)
    late = Client(place)
    assert [is_ended(one.socket) for one in clients] == [False, False, True, False]
    late.close()
    for one in clients:
        one.socket.close()


def test_nobody_gives_way_who_waits_for_an_answer(place: Path, backend: Zeros) -> None:
    clients = [Client(place) for _ in range(MOST)]
    backend.hold.clear()
    for one in clients:
        one.send(wire.CMD_READ, 0, 512)
    wait_for(lambda: backend.reads == MOST)
    with pytest.raises((EOFError, ConnectionError)):
        Client(place)
    backend.hold.set()
    for one in clients:
        assert one.receive(wire.CMD_READ, 512) == (0, bytes(512))
    Client(place).close()
    for one in clients:
        one.socket.close()


def test_nor_who_is_in_the_middle_of_a_request(server: NbdServer, place: Path) -> None:
    clients = [Client(place) for _ in range(MOST)]
    wait_for(lambda: server.idle_clients == MOST)
    head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 1, 0, 4096)
    for one, so_far in zip(clients, (head[:5], head, head + b"x", head + bytes(4000)), strict=True):
        one.socket.sendall(so_far)
    wait_for(lambda: server.idle_clients == 0)
    with pytest.raises((EOFError, ConnectionError)):
        Client(place)
    for one in clients:
        one.socket.close()


def test_but_who_stays_there_gives_way_in_the_end(
    server: NbdServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, *writers = clients = [Client(place) for _ in range(MOST)]
    wait_for(lambda: server.idle_clients == MOST)
    # More than a socket holds, and nobody takes it.
    reader.send_together(*[(wire.CMD_READ, 0, 1 << 20)] * 8)
    wait_for(lambda: server.idle_clients == MOST - 1)
    reader.wait_until_full()
    head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 1, 0, 4096)
    for one, so_far in zip(writers, (head[:5], head, head + b"x"), strict=True):
        one.socket.sendall(so_far)
    wait_for(lambda: server.idle_clients == 0)
    monkeypatch.setattr(accept, "LEAST_STALLED", 0.0)
    late = Client(place)
    assert late.read(0, 512) == bytes(512)
    assert [is_ended(one.socket) for one in writers] == [False, False, False]
    with pytest.raises((EOFError, ConnectionError)):
        reader.take(8 << 20)
    for one in (*clients, late):
        one.socket.close()


def test_over_tcp_no_stranger_ends_a_connection_that_is_served(
    backend: Zeros, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_server, "MOST_CLIENTS", 1)
    monkeypatch.setattr(accept, "LEAST_IDLE", 0.0)
    server = NbdServer(backend, TcpAddress("127.0.0.1", 0))
    assert isinstance(server.address, TcpAddress)
    place = server.address.host, server.address.port
    one = Client(place)
    wait_for(lambda: server.idle_clients == 1)
    with pytest.raises((EOFError, ConnectionError)):
        Client(place)
    assert one.read(0, 512) == bytes(512)
    one.close()
    server.stop()


def test_a_tcp_peer_that_vanishes_is_looked_for() -> None:
    with socket.socket() as one:
        keep_alive(one)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, every, times = (
            one.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
    assert idle + every * times == 120


@pytest.mark.parametrize(("soft", "most"), [(1024, 480), (20000, 1024), (65, 8)])
def test_the_bound_leaves_descriptors_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, soft: int, most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, soft))
    assert nbd_server.most_clients() == most


# accept fails


class Failing:
    """A listener whose accept fails so many times, with each of some errors."""

    def __init__(self, listener: socket.socket, numbers: list[int]) -> None:
        self._listener, self._numbers = listener, numbers
        self.calls = 0

    def accept(self) -> Any:
        self.calls += 1
        if self._numbers:
            raise OSError(self._numbers.pop(0), "planted")
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


@pytest.mark.parametrize(
    "number",
    [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED, errno.EPROTO],
)
@pytest.mark.parametrize("reserve", [False, True])
def test_the_loop_goes_on_after_any_error_and_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reserve: bool
) -> None:
    monkeypatch.setattr(accept, "LONGEST_PAUSE", 0.04)
    listener = Failing(listen_unix(tmp_path / "s"), [number] * 4)
    one = Acceptor(
        listener,  # type: ignore[arg-type]
        lambda peer: peer.socket.sendall(b"here"),
        "test",
        MOST,
        reserve=reserve,
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(tmp_path / "s"))
        assert client.recv(4) == b"here"
    # Not more often than it failed, and once for the client.
    assert listener.calls == 5
    one.stop()


def test_a_defect_ends_one_client_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(peer: Peer) -> None:
        if peer.socket.recv(1) == b"x":
            raise RuntimeError("planted")
        peer.socket.sendall(b"ok")

    one = Acceptor(listen_unix(tmp_path / "s"), serve, "test", MOST)
    for said, answer in ((b"x", b""), (b"y", b"ok")):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(said)
            assert client.recv(2) == answer
    one.stop()
    assert "a client of test was dropped" in caplog.text


# no descriptors left, in a process of its own

CHILD = """
import os, resource, sys
from pathlib import Path
from vhdtool.nbd import accept
accept.LONGEST_PAUSE = 0.05
folder = Path(sys.argv[1])
{start}
limit = len(os.listdir("/proc/self/fd")) + 2
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
print("full", flush=True)
sys.stdin.readline()
for fd in taken:
    os.close(fd)
print("free", flush=True)
sys.stdin.readline()
"""
CONTROL = """
import io
from vhdtool.image.create.empty import create_dynamic
from vhdtool.leases.factory import lease_opener
from vhdtool.leases.owner import Owner
from vhdtool.tapdisk.access import ImageOpener, Settings
from vhdtool.tapdisk.control import Control
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.events import Events
image = folder / "d.vhd"
create_dynamic(image, 4 << 20)
events = Events("a", io.StringIO())
lease = lease_opener(None, Owner.here("a"), True)
disk = TapDisk(Settings(True, ImageOpener(), lease, events.emit))
disk.attach(image, 4 << 20)
disk.activate()
server = Control(disk, events, folder / "ctl", folder / "nbd")
"""
TAPDISK = """
import io
from vhdtool.tapdisk.events import Events
from vhdtool.tapdisk.tapctl.daemon import Daemon
server = Daemon(folder, True, "a", Events("a", io.StringIO()))
server.path.rename(folder / "ctl")
"""


@contextlib.contextmanager
def without_descriptors(folder: Path, start: str) -> Iterator[Callable[[], None]]:
    """A server that has no descriptor left; what is yielded frees them again."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(start=start), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def free() -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "free\n"

    try:
        line = child.stdout.readline()
        assert line == "full\n", child.communicate()[1]
        yield free
        _, err = child.communicate("\n\n", timeout=20)
        assert "Traceback" not in err
    finally:
        child.kill()
        child.communicate()


def on_socket(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(20)
    one.connect(str(path))
    return one


def test_a_disk_is_deactivated_while_there_are_no_descriptors(tmp_path: Path) -> None:
    with without_descriptors(tmp_path, CONTROL), on_socket(tmp_path / "ctl") as one:
        one.sendall(b'{"id": 1, "op": "deactivate"}\n')
        answer = json.loads(one.makefile().readline())
        assert answer["ok"]["state"] == "attached"


def test_the_control_socket_lives_on_after_them(tmp_path: Path) -> None:
    with without_descriptors(tmp_path, CONTROL) as free:
        many = [on_socket(tmp_path / "ctl") for _ in range(20)]
        for one in many:
            # At once: a client that says nothing must give way to one that waits.
            one.sendall(b'{"id": 1, "op": "status"}\n')
        free()
        # All that waited are served, in their turn.
        for one in many:
            with one:
                assert json.loads(one.makefile().readline())["ok"]["state"] == "active"


def test_a_tapdisk_answers_and_lives_on(tmp_path: Path) -> None:
    from vhdtool.tapdisk.tapctl.wire import LIST, LIST_RSP, SIZE, Message

    def kind_of_answer() -> int:
        with on_socket(tmp_path / "ctl") as one:
            one.sendall(Message(LIST, 0xFFFF).pack())
            return Message.unpack(one.recv(SIZE, socket.MSG_WAITALL)).kind

    with without_descriptors(tmp_path, TAPDISK) as free:
        assert kind_of_answer() == LIST_RSP
        free()
        assert kind_of_answer() == LIST_RSP


# metrics


@pytest.fixture
def metrics() -> Iterator[MetricsServer]:
    one = MetricsServer(TcpAddress("127.0.0.1", 0), lambda: "figure 1\n" * (1 << 20))
    yield one
    one.stop()


def on_port(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_a_scraper_that_goes_leaves_no_traceback(
    metrics: MetricsServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for said in (b"", b"GET /met", b"GET /metrics HTTP/1.0\r\n\r\n", b"\xff\0\r\n\r\n"):
        one = on_port(metrics.port)
        one.sendall(said)
        # A reset, not an orderly end.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    wait_for(lambda: not metrics.clients)
    assert capfd.readouterr().err == ""
    assert caplog.text == ""


def test_scrapers_that_say_nothing_keep_nobody_out(metrics: MetricsServer) -> None:
    silents = [on_port(metrics.port) for _ in range(40)]
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
        assert answer.read(9) == b"figure 1\n"
    assert metrics.clients <= 16
    for one in silents:
        one.close()


def test_a_port_in_use_is_told(metrics: MetricsServer) -> None:
    from vhdtool.errors import VhdtoolError

    with pytest.raises(VhdtoolError, match="cannot listen"):
        MetricsServer(TcpAddress("127.0.0.1", metrics.port), str)
