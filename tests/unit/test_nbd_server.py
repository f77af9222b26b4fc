"""The NBD server over real sockets: good clients, bad clients, many clients."""

import errno
import os
import random
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nbd_raw import Client
from tests.support.shims import in_thread
from tests.support.waiting import wait_for
from vhdtool.errors import StateError, VhdtoolError
from vhdtool.nbd import accept
from vhdtool.nbd import protocol as wire
from vhdtool.nbd import server as nbd_server
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.server import NbdServer
from vhdtool.nbd.sockets import PassedSocket, TcpAddress, listen_unix, nbd_uri

SIZE = 4 << 20


class Memory(Backend):
    """A backend in memory, which can be told to fail."""

    can_fast_zero = True
    can_extents = True

    def __init__(self) -> None:
        self.data = bytearray(SIZE)
        self.error: Exception | None = None
        self.flushes = 0
        self.hold = threading.Event()
        self.hold.set()
        self.hold_next = False

    def export_size(self) -> int:
        return len(self.data)

    def waits(self) -> bool:
        return not self.hold.is_set()

    def _check(self) -> None:
        self.hold.wait(10)
        if self.error is not None:
            raise self.error

    def read(self, offset: int, length: int) -> bytes:
        self._check()
        if self.hold_next:
            self.hold.clear()
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: memoryview) -> None:
        self._check()
        self.data[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int) -> None:
        self._check()
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self._check()
        self.flushes += 1

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        return [(512, (offset // 512 + n) % 2 == 0) for n in range(length // 512)][:most]


@pytest.fixture
def backend() -> Memory:
    return Memory()


@pytest.fixture
def server(backend: Memory, tmp_path: Path) -> Iterator[NbdServer]:
    one = NbdServer(backend, tmp_path / "s.nbd")
    yield one
    one.stop()


@pytest.fixture(params=[False, True], ids=["simple", "structured"])
def client(server: NbdServer, request: pytest.FixtureRequest) -> Iterator[Client]:
    one = Client(server.address, structured=request.param)
    yield one
    one.close()


def test_what_was_written_is_read(client: Client, backend: Memory) -> None:
    assert client.write(512, b"x" * 1024) == 0
    assert client.read(0, 2048) == bytes(512) + b"x" * 1024 + bytes(512)
    assert client.ask(wire.CMD_WRITE_ZEROES, 512, 512) == (0, b"")
    assert bytes(backend.data[:2048]) == bytes(1024) + b"x" * 512 + bytes(512)


def test_requests_may_be_larger_than_any_buffer(client: Client, backend: Memory) -> None:
    data = random.Random(1).randbytes(3 << 20)
    assert client.write(1024, data) == 0
    assert client.read(1024, len(data)) == data


def test_fua_and_flush_reach_the_backend(client: Client, backend: Memory) -> None:
    client.write(0, bytes(512))
    assert backend.flushes == 0
    client.write(0, bytes(512), wire.FLAG_FUA)
    client.ask(wire.CMD_WRITE_ZEROES, 0, 512, wire.FLAG_FUA)
    client.ask(wire.CMD_FLUSH)
    assert backend.flushes == 3


class Frees(Memory):
    """A backend that does something about advice."""

    can_prefetch = True

    can_trim = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int, int]] = []

    def trim(self, offset: int, length: int) -> None:
        self._check()
        self.asked.append(("trim", offset, length))

    def prefetch(self, offset: int, length: int) -> None:
        self._check()
        self.asked.append(("prefetch", offset, length))


def flags_of(place: Path) -> int:
    """What the server announces."""
    client = Client(place)
    client.close()
    return client.flags


def test_advice_reaches_a_backend_that_takes_it(tmp_path: Path) -> None:
    backend = Frees()
    server = NbdServer(backend, tmp_path / "s")
    both = wire.SEND_TRIM | wire.SEND_CACHE
    try:
        client = Client(tmp_path / "s")
        assert client.flags & both == both
        assert client.ask(wire.CMD_TRIM, 512, 1 << 20) == (0, b"")
        assert client.ask(wire.CMD_CACHE, 0, 4096) == (0, b"")
        assert backend.flushes == 0
        assert client.ask(wire.CMD_TRIM, 0, 512, wire.FLAG_FUA) == (0, b"")
        assert backend.flushes == 1
        asked = [("trim", 512, 1 << 20), ("prefetch", 0, 4096), ("trim", 0, 512)]
        assert backend.asked == asked
        backend.error = OSError(errno.EIO, "broken")
        assert client.ask(wire.CMD_TRIM, 0, 512)[0] == errno.EIO
        backend.error = None
        for offset, length in ((SIZE, 512), (1, 512), (0, 1), (0, 0)):
            assert client.ask(wire.CMD_TRIM, offset, length)[0] in (errno.ENOSPC, errno.EINVAL)
        assert backend.asked == asked
        backend.can_trim = False
        assert flags_of(tmp_path / "s") & both == wire.SEND_CACHE
        client.close()
    finally:
        server.stop()


def test_trim_and_cache_are_advice(client: Client, backend: Memory) -> None:
    """A backend that knows neither: they are not announced, and do no harm."""
    assert not client.flags & (wire.SEND_TRIM | wire.SEND_CACHE)
    client.write(0, b"x" * 512)
    assert client.ask(wire.CMD_TRIM, 0, 512) == (0, b"")
    assert client.ask(wire.CMD_CACHE, 0, 512) == (0, b"")
    assert bytes(backend.data[:512]) == b"x" * 512


def test_zeros_without_holes_are_written(client: Client, backend: Memory) -> None:
    backend.data[:] = b"y" * SIZE
    assert client.ask(wire.CMD_WRITE_ZEROES, 0, 3 << 20, wire.FLAG_NO_HOLE) == (0, b"")
    assert not any(backend.data[: 3 << 20])
    both = wire.FLAG_NO_HOLE | wire.FLAG_FAST_ZERO
    assert client.ask(wire.CMD_WRITE_ZEROES, 0, 512, both)[0] == errno.ENOTSUP
    assert client.ask(wire.CMD_WRITE_ZEROES, 0, 512, wire.FLAG_FAST_ZERO)[0] == 0
    backend.can_fast_zero = False
    assert client.ask(wire.CMD_WRITE_ZEROES, 0, 512, wire.FLAG_FAST_ZERO)[0] == errno.ENOTSUP


def test_block_status_tells_extents(server: NbdServer) -> None:
    client = Client(server.address, structured=True, allocation=True)
    error, data = client.ask(wire.CMD_BLOCK_STATUS, 512, 1536)
    assert error == 0
    assert struct.unpack(">I6I", data) == (wire.ALLOCATION_ID, 512, 3, 512, 0, 512, 3)
    error, data = client.ask(wire.CMD_BLOCK_STATUS, 0, 1536, wire.FLAG_REQ_ONE)
    assert struct.unpack(">I2I", data) == (wire.ALLOCATION_ID, 512, 0)
    client.close()


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "code"),
    [
        (wire.CMD_READ, 0, 100, 0, errno.EINVAL),
        (wire.CMD_READ, 100, 512, 0, errno.EINVAL),
        (wire.CMD_READ, SIZE, 512, 0, errno.EINVAL),
        (wire.CMD_READ, SIZE - 512, 1024, 0, errno.EINVAL),
        (wire.CMD_READ, (1 << 64) - 512, 512, 0, errno.EINVAL),
        (wire.CMD_READ, 0, 0, 0, errno.EINVAL),
        (wire.CMD_READ, 0, 0xFFFFFE00, 0, errno.EINVAL),
        (wire.CMD_WRITE_ZEROES, 0, 0xFFFFFE00, 0, errno.ENOSPC),
        (wire.CMD_TRIM, SIZE, 512, 0, errno.ENOSPC),
        (wire.CMD_BLOCK_STATUS, 0, 512, 0, errno.EINVAL),
        (wire.CMD_READ, 0, 512, 0x8000, errno.EINVAL),
        (wire.CMD_FLUSH, 0, 0, wire.FLAG_NO_HOLE, errno.EINVAL),
        (77, 0, 512, 0, errno.EINVAL),
    ],
)
def test_impossible_requests_get_an_error_and_the_next_is_served(
    client: Client, command: int, offset: int, length: int, flags: int, code: int
) -> None:
    assert client.ask(command, offset, length, flags)[0] == code
    assert client.write(0, b"z" * 512) == 0
    assert client.read(0, 512) == b"z" * 512


def test_a_wrong_write_is_an_error_and_the_next_is_served(
    client: Client,
) -> None:
    assert client.write(SIZE - 512, bytes(1024)) == errno.ENOSPC
    assert client.write(0, bytes(100)) == errno.EINVAL
    assert client.write(0, bytes(512)) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.ESTALE, "stale"), errno.EIO),
        (OSError("no number"), errno.EIO),
        (StateError("not now"), errno.EIO),
        (ZeroDivisionError("a defect"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
    ],
)
def test_errors_of_the_backend_reach_the_client(
    client: Client, backend: Memory, error: Exception, code: int
) -> None:
    backend.error = error
    assert client.ask(wire.CMD_READ, 0, 512)[0] == code
    assert client.write(0, bytes(512)) == code
    assert client.ask(wire.CMD_FLUSH)[0] == code
    backend.error = None
    assert client.read(0, 512) == bytes(512)


def test_a_structured_client_gets_the_sentence(server: NbdServer, backend: Memory) -> None:
    client = Client(server.address, structured=True)
    backend.error = StateError("disk.vhd: fenced")
    assert client.ask(wire.CMD_READ, 0, 512)[0] == errno.EIO
    assert client.message == "disk.vhd: fenced"
    client.close()


def test_many_requests_at_once_are_all_answered_in_order(client: Client, backend: Memory) -> None:
    for n in range(600):
        client.send(wire.CMD_WRITE, n * 512, 512, data=bytes([n % 251]) * 512)
    for n in range(600):
        client.send(wire.CMD_READ, n * 512, 512)
    for _ in range(600):
        assert client.receive(wire.CMD_WRITE, 512)[0] == 0
    for n in range(600):
        assert client.receive(wire.CMD_READ, 512) == (0, bytes([n % 251]) * 512)


def test_an_answer_does_not_wait_for_a_request_that_is_held(
    client: Client, backend: Memory
) -> None:
    backend.hold_next = True
    client.send_together((wire.CMD_READ, 0, 512), (wire.CMD_READ, 512, 512))
    assert client.receive(wire.CMD_READ, 512)[0] == 0
    backend.hold_next = False
    backend.hold.set()
    assert client.receive(wire.CMD_READ, 512)[0] == 0


def test_a_disconnect_is_clean(client: Client) -> None:
    client.send(wire.CMD_READ, 0, 512)
    client.send(wire.CMD_DISC)
    assert client.receive(wire.CMD_READ, 512)[0] == 0
    assert client.socket.recv(1) == b""


def raw(server: NbdServer) -> socket.socket:
    assert isinstance(server.address, Path)
    one = socket.socket(socket.AF_UNIX)
    one.connect(str(server.address))
    one.settimeout(5)
    return one


def ended(one: socket.socket) -> bool:
    """Whether the server has ended the connection."""
    try:
        while one.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


HAGGLING = wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_LIST, 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(4),
        b"\0\0\0\3" + b"\xff" * 16,
        b"\0\0\0\3" + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, 0xFFFFFFFF),
        b"\0\0\0\3" + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, 100) + b"half",
    ],
)
def test_bad_handshakes_end_and_others_are_served(server: NbdServer, sent: bytes) -> None:
    one = raw(server)
    one.sendall(sent)
    one.shutdown(socket.SHUT_WR)
    assert ended(one)
    one.close()
    good = Client(server.address)
    assert good.read(0, 512) == bytes(512)
    good.close()


@pytest.mark.parametrize("more", [b"", b"\0", HAGGLING])
def test_a_client_that_never_chooses_an_export_is_dropped(
    backend: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    monkeypatch.setattr(nbd_server, "HANDSHAKE_PATIENCE", 0.2)
    server = NbdServer(backend, tmp_path / "s")
    settled = Client(tmp_path / "s")
    one = raw(server)
    thread, said = in_thread(lambda: say_again_and_again(one, more))
    assert ended(one)
    thread.join(10)
    assert said
    one.close()
    # The patience is for the handshake. This client connected first and has chosen an export.
    assert settled.read(0, 512) == bytes(512)
    settled.close()
    server.stop()


def say_again_and_again(one: socket.socket, more: bytes) -> int:
    """Sends until the server ends the connection; how often."""
    for number in range(10_000):
        try:
            one.sendall(more)
        except OSError:
            return number
        # A slow client: the deadline ends it, not what it sends.
        time.sleep(0.01)
    raise AssertionError("nobody ended it")


def test_options_without_end_end_the_client(server: NbdServer) -> None:
    one = raw(server)
    one.sendall(b"\0\0\0\3")
    thread, _ = in_thread(lambda: one.sendall(HAGGLING * 5000))
    assert ended(one)
    thread.join(10)
    one.close()


@pytest.mark.parametrize(
    "sent",
    [
        bytes(28),
        wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 1, 0, 0xFFFFFFFF),
        wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 1, 0, 4096) + b"half",
        wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_READ, 1, 0, 512)[:13],
    ],
)
def test_bad_requests_end_the_connection_only(
    client: Client, server: NbdServer, sent: bytes
) -> None:
    client.socket.sendall(sent)
    client.socket.shutdown(socket.SHUT_WR)
    assert ended(client.socket)
    good = Client(server.address)
    assert good.read(0, 512) == bytes(512)
    good.close()


@pytest.mark.parametrize("seed", range(20))
def test_noise_after_a_good_start_harms_nobody(
    server: NbdServer, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(seed)
    client = Client(server.address, structured=bool(seed % 2), allocation=bool(seed % 2))
    for _ in range(dice.randrange(1, 20)):
        header = bytearray(wire.REQUEST.pack(
            wire.REQUEST_MAGIC, dice.choice((0, 0, 1, 0xFFFF)), dice.randrange(10), 5,
            dice.choice((0, 512, 1 << 40)), dice.choice((0, 512, 4096)),
        ))  # fmt: skip
        if dice.random() < 0.2:
            header[dice.randrange(28)] = dice.randrange(256)
        try:
            client.socket.sendall(bytes(header) + dice.randbytes(dice.choice((0, 512, 4096))))
        except OSError:
            break
    client.socket.close()
    good = Client(server.address)
    good.read(0, 512)
    good.close()
    assert "defect" not in caplog.text


def test_a_slow_reader_holds_up_nobody_and_memory_stays(server: NbdServer) -> None:
    slow = Client(server.address)
    slow.socket.settimeout(0.2)
    try:
        for _ in range(100_000):
            slow.send(wire.CMD_READ, 0, 1 << 20)
    except TimeoutError:
        pass
    other = Client(server.address)
    started = time.monotonic()
    assert other.read(0, 512) == bytes(512)
    assert time.monotonic() - started < 2
    other.close()
    slow.socket.close()


def test_a_thousand_connects_leave_nothing_behind(server: NbdServer) -> None:
    before = threading.active_count()
    for n in range(1000):
        one = raw(server)
        if n % 2:
            one.sendall(b"\0\0\0\3")
        one.close()
    wait_for(lambda: threading.active_count() <= before, 60)
    assert not server.clients


def test_many_clients_at_once_see_one_disk(server: NbdServer) -> None:
    clients = [Client(server.address) for _ in range(40)]
    for n, one in enumerate(clients):
        assert one.write(n * 512, bytes([n]) * 512) == 0
    for one in clients:
        assert one.read(39 * 512, 512) == bytes([39]) * 512
        one.close()


def test_stop_ends_clients_and_removes_the_socket(server: NbdServer, client: Client) -> None:
    server.stop()
    assert ended(client.socket)
    assert isinstance(server.address, Path)
    assert not server.address.exists()


# sockets


def test_the_socket_is_private(server: NbdServer) -> None:
    assert isinstance(server.address, Path)
    assert stat.S_IMODE(server.address.stat().st_mode) == 0o600
    assert server.uri == f"nbd+unix:///?socket={server.address}"


@pytest.mark.parametrize(
    ("place", "uri"),
    [
        (Path("/a b/s"), "nbds+unix://al%40ice@/?socket=/a%20b/s"),
        (Path(os.fsdecode(b"\xff%&#")), "nbds+unix://al%40ice@/?socket=%FF%25%26%23"),
        (TcpAddress("::1", 10809), "nbds://al%40ice@[::1]:10809"),
        (TcpAddress("fe80::1%eth0", 1), "nbds://al%40ice@[fe80::1%25eth0]:1"),
        (TcpAddress("127.0.0.1", 1), "nbds://al%40ice@127.0.0.1:1"),
    ],
)
def test_uris_are_percent_encoded(place: Path | TcpAddress, uri: str) -> None:
    assert nbd_uri(place, "nbds", "al%40ice@") == uri


def test_a_socket_in_use_a_file_and_a_bad_path_are_told(server: NbdServer, tmp_path: Path) -> None:
    assert isinstance(server.address, Path)
    with pytest.raises(VhdtoolError, match="in use"):
        listen_unix(server.address)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VhdtoolError, match="no socket"):
        listen_unix(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    for path in (tmp_path / "no" / "where", tmp_path / ("x" * 200), tmp_path / "file" / "below"):
        with pytest.raises(VhdtoolError, match="cannot listen"):
            listen_unix(path)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    old = socket.socket(socket.AF_UNIX)
    old.bind(str(tmp_path / "s"))
    old.close()
    with listen_unix(tmp_path / "s"), socket.socket(socket.AF_UNIX) as client:
        assert client.connect_ex(str(tmp_path / "s")) == 0


def test_tcp_listens_where_it_is_told(backend: Memory) -> None:
    server = NbdServer(backend, TcpAddress("127.0.0.1", 0))
    assert isinstance(server.address, TcpAddress)
    host, port = server.address.host, server.address.port
    assert server.uri == f"nbd://127.0.0.1:{port}"
    client = Client((host, port))
    assert client.write(0, b"t" * 512) == 0
    client.close()
    with pytest.raises(VhdtoolError, match="cannot listen"):
        NbdServer(backend, TcpAddress("127.0.0.1", port))
    server.stop()
    for place in (TcpAddress("no.such.host.invalid", 1), TcpAddress("127.0.0.1", 70000)):
        with pytest.raises(VhdtoolError, match="cannot listen"):
            NbdServer(backend, place)


def test_descriptors_that_run_out_end_no_server(
    server: NbdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 6, hard))
    many = []
    try:
        for _ in range(20):
            one = socket.socket(socket.AF_UNIX)
            many.append(one)
            one.settimeout(1)
            one.connect(str(server.address))
    except OSError:
        pass
    finally:
        for one in many:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    good = Client(server.address)
    assert good.read(0, 512) == bytes(512)
    good.close()


def test_more_clients_than_the_limit_are_refused(
    backend: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_server, "LEAVE_PATIENCE", 0.05)
    monkeypatch.setattr(accept, "LEAST_IDLE", 0.0)
    left = threading.Event()
    server = NbdServer(backend, tmp_path / "s", most=1, all_left=left.set)
    first = Client(tmp_path / "s")
    with pytest.raises(AssertionError):
        Client(tmp_path / "s")
    # An idle client is not replaced, either.
    assert first.write(0, b"t" * 512) == 0
    assert not left.is_set()
    first.close()
    assert left.wait(10)
    second = Client(tmp_path / "s")
    second.close()
    server.stop()


def test_a_client_waits_for_another_that_is_leaving(backend: Memory, tmp_path: Path) -> None:
    server = NbdServer(backend, tmp_path / "s", most=1)
    first = Client(tmp_path / "s")
    leaving = threading.Timer(0.1, first.close)
    leaving.start()
    second = Client(tmp_path / "s")
    assert second.write(0, b"t" * 512) == 0
    second.close()
    leaving.join()
    server.stop()


def test_a_client_that_chooses_no_export_does_not_count(backend: Memory, tmp_path: Path) -> None:
    left = threading.Event()
    server = NbdServer(backend, tmp_path / "s", most=1, all_left=left.set)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(tmp_path / "s"))
            assert probe.recv(18)
    client = Client(tmp_path / "s")
    assert not left.is_set()
    client.close()
    assert left.wait(10)
    server.stop()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_passed_socket_outlives_the_server(
    backend: Memory, tmp_path: Path, family: socket.AddressFamily
) -> None:
    unix = family == socket.AF_UNIX
    with socket.socket(family) as listener:
        listener.bind(str(tmp_path / "s") if unix else ("127.0.0.1", 0))
        listener.listen()
        place: Any = tmp_path / "s" if unix else listener.getsockname()
        for _ in range(2):
            server = NbdServer(backend, PassedSocket(os.dup(listener.fileno())))
            assert server.uri.endswith(str(place if unix else place[1]))
            client = Client(place)
            assert client.write(0, b"t" * 512) == 0
            server.stop()
            client.socket.close()
        # It waits for the next server on this socket.
        with socket.socket(family) as waiting:
            waiting.connect(str(place) if unix else place)
            assert not unix or place.exists()
