"""Memory of the NBD server: it follows what arrived, and all clients together have a bound."""

import contextlib
import errno
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fast_path_rig import BLOCK, Model, Pipe, Rig, play
from tests.support.nbd_raw import Client
from tests.support.waiting import wait_for, wait_until_stable
from vhdtool.nbd import accept, buffers, fast_path, plain_path
from vhdtool.nbd import protocol as wire
from vhdtool.nbd import server as nbd_server
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.server import NbdServer

MIB = 1 << 20
SPOKEN = b"\0\0\0\3" + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0)
"""What a client says to be served: 20 bytes."""


def head(command: int, length: int, offset: int = 0) -> bytes:
    return wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, 1, offset, length)


class Pattern(Backend):
    """A disk of 256 MiB whose byte at n is n >> 20; `bad`: bytes that cannot be read or written."""

    size = 256 * MIB

    def __init__(self) -> None:
        self.bad: range = range(0)
        self.written: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int]] = []

    def export_size(self) -> int:
        return self.size

    def _check(self, offset: int, length: int) -> None:
        if offset < self.bad.stop and offset + length > self.bad.start:
            raise OSError(errno.EIO, "planted")

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return b"".join(
            bytes([n]) * (min((n + 1) * MIB, offset + length) - max(n * MIB, offset))
            for n in range(offset // MIB, -(-(offset + length) // MIB))
        )

    def write(self, offset: int, data: memoryview) -> None:
        self._check(offset, len(data))
        self.written.append((offset, len(data)))

    def write_zeroes(self, offset: int, length: int) -> None:
        self.zeroed.append((offset, length))

    def flush(self) -> None: ...


@pytest.fixture
def pattern() -> Pattern:
    return Pattern()


@pytest.fixture
def place(pattern: Pattern, tmp_path: Path) -> Iterator[Path]:
    server = NbdServer(pattern, tmp_path / "s")
    yield tmp_path / "s"
    server.stop()


@pytest.fixture(params=[False, True], ids=["cached", "direct"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    one = Rig(tmp_path, request.param)
    one.disk.activate()
    first = one.client()
    assert first.write(0, b"w" * BLOCK) == 0
    first.close()
    yield one
    one.disk.detach(one.server.stop)


@contextlib.contextmanager
def little_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> Iterator[None]:
    """As if all other memory were in use by other clients."""
    monkeypatch.setattr(plain_path, "shares", buffers.SharePool(most))
    if fast_path.available:
        fast_path.c.set_memory_limit(most)
    yield
    if fast_path.available:
        fast_path.c.set_memory_limit(buffers.SHARED)


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def said(place: Path, more: bytes) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(10)
    one.connect(str(place))
    one.sendall(SPOKEN + more)
    return one


@pytest.mark.parametrize("sent", [b"", b"x"], ids=["48 bytes", "49 bytes"])
def test_a_write_takes_no_memory_for_data_that_has_not_come(place: Path, sent: bytes) -> None:
    before = resident()
    clients = [said(place, head(wire.CMD_WRITE, 32 * MIB) + sent) for _ in range(40)]
    assert wait_until_stable(resident, 65535) - before < 40 * MIB // 2
    for one in clients:
        one.close()


def test_nor_in_the_fast_path(rig: Rig) -> None:
    place = rig.server.address
    assert isinstance(place, Path)
    before = resident()
    clients = [said(place, head(wire.CMD_WRITE, BLOCK) + b"x") for _ in range(40)]
    assert wait_until_stable(resident, 65535) - before < 40 * MIB // 2
    for one in clients:
        one.close()


def test_readers_that_do_not_read_share_one_bound(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with little_memory(monkeypatch, 2 * buffers.SHARE):
        before = resident()
        clients = [said(place, head(wire.CMD_READ, 32 * MIB)) for _ in range(40)]
        assert wait_until_stable(resident, 65535) - before < 2 * buffers.SHARE + 40 * MIB // 2
        # Another client gets all it wants meanwhile, whatever its size.
        other = Client(place, structured=True)
        assert other.read(0, 8 * MIB) == Pattern().read(0, 8 * MIB)
        for one in (*clients, other.socket):
            one.close()


def test_many_requests_of_many_clients_share_one_bound(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 24 * MIB
    # The fast path and Python have as much each.
    with little_memory(monkeypatch, most):
        before = resident()
        clients = [rig.client() for _ in range(20)]
        for one in clients:
            one.send_together(*[(wire.CMD_READ, 0, BLOCK)] * 30)
        assert wait_until_stable(resident, 65535) - before < 2 * most + 20 * MIB
        other = rig.client()
        assert other.write(4096, b"o" * 4096) == 0
        assert other.read(0, 8192) == b"w" * 4096 + b"o" * 4096
        assert other.read(8192, BLOCK - 8192) == b"w" * (BLOCK - 8192)
        other.close()
        for one in clients:
            for _ in range(30):
                one.take(16)
                assert len(one.take(BLOCK)) == BLOCK
            one.close()


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("most", [0, 2 * MIB, buffers.SHARE])
def test_with_little_memory_any_requests_are_a_bytearray(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, most: int, structured: bool
) -> None:
    with little_memory(monkeypatch, most):
        model = Model(most + structured)
        model.data[:BLOCK] = b"w" * BLOCK
        pipe = Pipe(rig.client(structured))
        play(pipe, model, 150)
        pipe.close()
        assert rig.content() == model.data


# pieces


@pytest.mark.parametrize(
    ("structured", "flags"), [(False, 0), (True, 0), (True, wire.FLAG_DF)], ids=["simple", "", "DF"]
)
@pytest.mark.parametrize("scarcely", [False, True])
def test_a_large_read_is_whole(
    place: Path, monkeypatch: pytest.MonkeyPatch, structured: bool, flags: int, scarcely: bool
) -> None:
    with little_memory(monkeypatch, 0 if scarcely else buffers.SHARED):
        client = Client(place, structured)
        client.send(wire.CMD_READ, MIB - 512, 32 * MIB, flags)
        error, data = client.receive(wire.CMD_READ, 32 * MIB)
        assert error == 0
        assert data == Pattern().read(MIB - 512, 32 * MIB)
        assert client.read(0, 512) == bytes(512)
        client.close()


def test_a_large_read_that_fails_in_the_middle_is_an_error(place: Path, pattern: Pattern) -> None:
    pattern.bad = range(20 * MIB, 20 * MIB + 512)
    client = Client(place, structured=True)
    assert client.ask(wire.CMD_READ, 0, 32 * MIB) == (errno.EIO, b"")
    assert client.message == "planted"
    assert client.read(0, 512) == bytes(512)
    client.close()


def test_where_the_answer_cannot_say_so_the_connection_ends(place: Path, pattern: Pattern) -> None:
    pattern.bad = range(20 * MIB, 20 * MIB + 512)
    client = Client(place)
    assert client.ask(wire.CMD_READ, 20 * MIB, 32 * MIB) == (errno.EIO, b"")
    with pytest.raises((EOFError, ConnectionError)):
        client.ask(wire.CMD_READ, 0, 32 * MIB)
    client.socket.close()


def test_a_large_write_that_fails_is_answered_after_all_its_data(
    place: Path, pattern: Pattern
) -> None:
    pattern.bad = range(20 * MIB, 20 * MIB + 512)
    client = Client(place)
    assert client.write(0, bytes(32 * MIB)) == errno.EIO
    # Nothing of what follows a failure is written, nor of a request that is refused.
    assert sum(length for _, length in pattern.written) == 20 * MIB
    assert client.write(pattern.size - MIB, bytes(32 * MIB)) == errno.ENOSPC
    assert client.write(32 * MIB, bytes(4 * MIB), wire.FLAG_FUA) == 0
    assert sum(length for _, length in pattern.written) == 24 * MIB
    client.close()


def test_a_large_write_holds_up_no_pause(rig: Rig) -> None:
    client = rig.client()
    data = random.Random(1).randbytes(4 * MIB)
    client.socket.sendall(head(wire.CMD_WRITE, len(data)) + data[: 3 * MIB])
    wait_for(lambda: rig.server.idle_clients == 0)
    rig.disk.pause()
    rig.disk.unpause()
    client.socket.sendall(data[3 * MIB :])
    assert wire.REPLY.unpack(client.take(16)) == (wire.REPLY_MAGIC, 0, 1)
    client.close()
    assert rig.content()[: 4 * MIB] == data


def test_a_client_lost_in_a_large_write_leaves_a_whole_image(rig: Rig) -> None:
    client = rig.client()
    client.socket.sendall(head(wire.CMD_WRITE, 8 * MIB) + b"p" * (3 * MIB))
    client.socket.close()
    wait_for(lambda: rig.disk.status()["clients"] == 0)
    content = rig.content()
    assert set(content[3 * MIB :]) == {0}
    assert content[:MIB] == b"p" * MIB


def test_zeroing_gigabytes_goes_step_by_step(place: Path, pattern: Pattern) -> None:
    client = Client(place)
    assert client.ask(wire.CMD_WRITE_ZEROES, MIB, 200 * MIB) == (0, b"")
    assert pattern.zeroed == [
        (MIB, 63 * MIB), (64 * MIB, 64 * MIB), (128 * MIB, 64 * MIB), (192 * MIB, 9 * MIB),
    ]  # fmt: skip
    client.close()


# who is idle, as the fast path sees it


def test_the_fast_path_tells_who_is_idle(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_server, "MOST_CLIENTS", 3)
    monkeypatch.setattr(accept, "LEAST_IDLE", 0.0)
    place = rig.server.address
    assert isinstance(place, Path)
    rig.server.stop()
    rig.server = NbdServer(rig.disk.router, place)
    idle, slow, reading = (rig.client() for _ in range(3))
    for one in (idle, slow, reading):
        assert one.read(0, 512) == b"w" * 512
    slow.socket.sendall(head(wire.CMD_WRITE, 65536) + b"x")
    reading.send_together(*[(wire.CMD_READ, 0, BLOCK)] * 30)
    wait_for(lambda: rig.server.idle_clients == 1)
    late = rig.client()
    assert late.read(0, 512) == b"w" * 512
    assert idle.socket.recv(1) == b""
    slow.socket.sendall(bytes(65535))
    assert slow.take(16)
    for _ in range(30):
        reading.take(16)
        assert len(reading.take(BLOCK)) == BLOCK
    for one in (idle, slow, reading, late):
        one.socket.close()


def test_and_who_is_stalled(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_server, "MOST_CLIENTS", 2)
    place = rig.server.address
    assert isinstance(place, Path)
    rig.server.stop()
    rig.server = NbdServer(rig.disk.router, place)
    reading, slow = rig.client(), rig.client()
    for one in (reading, slow):
        assert one.read(0, 512) == b"w" * 512
    reading.send_together(*[(wire.CMD_READ, 0, BLOCK)] * 30)
    reading.wait_until_full()
    slow.socket.sendall(head(wire.CMD_WRITE, 65536) + b"x")
    wait_for(lambda: rig.server.idle_clients == 0)
    with pytest.raises((EOFError, ConnectionError)):
        rig.client()
    monkeypatch.setattr(accept, "LEAST_STALLED", 0.0)
    late = rig.client()
    assert late.read(0, 512) == b"w" * 512
    slow.socket.sendall(bytes(65535))
    assert slow.take(16)
    with pytest.raises((EOFError, ConnectionError)):
        reading.take(30 * (16 + BLOCK))
    for one in (reading, slow, late):
        one.socket.close()
