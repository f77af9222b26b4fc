"""Requests that the library serves: the same answers as Python's, and the same rules."""

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nbd_raw import Client
from shims import in_thread, owner, plain_bytes, verdict

from vhdtool.errors import SplitBrain
from vhdtool.image.create import create_dynamic
from vhdtool.image.disk import DynamicDisk
from vhdtool.image.straight import StraightMap
from vhdtool.storage import FileStorage, MemoryStorage
from vhdtool.storage import nbd_wire as wire
from vhdtool.tapdisk import straight
from vhdtool.tapdisk.disk import Settings, TapDisk
from vhdtool.tapdisk.epochs import EpochRecord
from vhdtool.tapdisk.lease import EpochLease, TrustingLease
from vhdtool.tapdisk.nbd import NbdServer
from vhdtool.tapdisk.nbd_client import Connection

BLOCK = 512 << 10
SIZE = 16 * BLOCK + 4096
"""The last block does not lie wholly within the disk."""
OFF = os.environ.get("VHDTOOL_STRAIGHT") == "off"


def test_the_library_was_built() -> None:
    """`make setup` builds it; all tests here run without it too, with VHDTOOL_STRAIGHT=off."""
    assert straight.available() is not OFF


class Rig:
    """A disk on a real file, served; its events."""

    def __init__(self, folder: Path, direct: bool, guard: bool = True) -> None:
        self.path, self.direct, self.guard = folder / "disk.vhd", direct, guard
        self.events: list[dict[str, Any]] = []
        create_dynamic(self.path, SIZE, block_bytes=BLOCK)
        self.disk = self.another("alpha")
        self.server = NbdServer(self.disk, folder / "s.nbd")

    def another(self, host: str) -> TapDisk:
        def emit(event: str, **fields: Any) -> None:
            self.events.append({"event": event, **fields})

        kind = EpochLease if self.guard else TrustingLease
        disk = TapDisk(
            Settings(
                guard=self.guard,
                open_storage=lambda path: FileStorage(path, writable=True, direct=self.direct),
                open_lease=lambda path: kind(EpochRecord(path), owner(host)),
                emit=emit,
            )
        )
        disk.attach(self.path, SIZE)
        return disk

    def client(self, structured: bool = False) -> Client:
        place = self.server.place
        assert isinstance(place, Path)
        return Client(place, structured)

    def content(self) -> bytes:
        """What the closed image holds; it must be consistent."""
        self.disk.detach(self.server.stop)
        image = MemoryStorage(self.path.read_bytes())
        assert verdict(image).exit_code == 0
        return plain_bytes(image)


@pytest.fixture(params=[True, False], ids=["direct", "cached"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    one = Rig(tmp_path, request.param)
    one.disk.activate()
    yield one
    one.server.stop()
    one.disk.detach()


class Pipe:
    """Many requests of one client under way; answers may come in any order."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answers: dict[int, tuple[int, bytes]] = {}
        self._lengths: dict[int, int] = {}
        self._changed = threading.Condition()
        self._cookie = 0
        self.thread, self.outcome = in_thread(self._receive)

    def _receive(self) -> None:
        while True:
            cookie, error, data = self._answer()
            with self._changed:
                self.answers[cookie] = error, data
                self._changed.notify_all()

    def _answer(self) -> tuple[int, int, bytes]:
        take = self.client.take
        if not self.client.structured:
            _, error, cookie = wire.REPLY.unpack(take(16))
            return cookie, error, take(0 if error else self._lengths[cookie])
        _, _, kind, cookie, size = wire.CHUNK.unpack(take(20))
        body = take(size)
        if kind == wire.CHUNK_ERROR:
            return cookie, int.from_bytes(body[:4], "big"), body[6:]
        return cookie, 0, body[8:]

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"") -> int:
        self._cookie += 1
        self._lengths[self._cookie] = length if command == wire.CMD_READ else 0
        raw = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        self.client.socket.sendall(raw + data)
        return self._cookie

    def wait(self, cookie: int) -> tuple[int, bytes]:
        with self._changed:
            assert self._changed.wait_for(lambda: cookie in self.answers or self.outcome, 20), (
                f"no answer to request {cookie}"
            )
            return self.answers.pop(cookie)

    def close(self) -> None:
        self.client.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.client.socket.close()


def test_python_is_not_asked_for_what_has_its_place(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = Connection.step

    def counted(self: Connection) -> bool:
        nonlocal steps
        steps += 1
        return step(self)

    monkeypatch.setattr(Connection, "step", counted)
    client = rig.client()
    began = time.monotonic()
    for number in range(300):
        assert client.write(number * 4096, bytes([number % 255]) * 4096) == 0
        assert client.read(number * 4096, 4096) == bytes([number % 255]) * 4096
    looks = (time.monotonic() - began) / 0.1
    if OFF:
        assert steps >= 600
    else:
        # The first read, the first write, and those at which the lease was looked at again.
        assert steps <= 4 + looks
    status = rig.disk.status()
    assert (status["read_bytes"], status["written_bytes"]) == (300 * 4096, 300 * 4096)
    assert status["requests"] == {"read": 300, "write": 300, "other": 0}
    assert status["allocations"] == len([e for e in rig.events if e["event"] == "allocated"]) == 3
    client.close()


class Model:
    """What the disk holds, and which sectors have a request under way."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.data = bytearray(SIZE)
        self.busy: set[int] = set()

    def free(self, longest: int = 4000) -> tuple[int, int] | None:
        """(offset, length) in bytes of a range without requests."""
        sectors = self.dice.choice((1, 7, 8, 8, 8, 64, 512, 1025, longest))
        first = self.dice.randrange(SIZE // 512 - sectors)
        span = range(first, first + sectors)
        if not self.busy.isdisjoint(span):
            return None
        self.busy |= set(span)
        return first * 512, sectors * 512

    def done(self, offset: int, length: int) -> None:
        self.busy -= set(range(offset // 512, (offset + length) // 512))


def play(pipe: Pipe, model: Model, rounds: int) -> None:
    """Requests of all kinds, up to 24 under way."""
    dice = model.dice
    waiting: list[Callable[[], None]] = []

    def finish(cookie: int, place: tuple[int, int], expected: bytes | None) -> None:
        error, data = pipe.wait(cookie)
        assert error == 0
        if expected is not None:
            assert data == expected
        model.done(*place)

    for _ in range(rounds):
        kind = dice.choice(("write", "write", "read", "zero", "flush", "wrong", "past"))
        place = model.free() if kind in ("write", "read", "zero") else (0, 0)
        if place is None:
            continue
        offset, length = place
        at = slice(offset, offset + length)
        expected = None
        if kind == "write":
            model.data[at] = dice.randbytes(length)
            cookie = pipe.ask(wire.CMD_WRITE, offset, length, bytes(model.data[at]))
        elif kind == "read":
            expected = bytes(model.data[at])
            cookie = pipe.ask(wire.CMD_READ, offset, length)
        elif kind == "zero":
            model.data[at] = bytes(length)
            cookie = pipe.ask(wire.CMD_WRITE_ZEROES, offset, length)
        elif kind == "flush":
            cookie = pipe.ask(wire.CMD_FLUSH)
        else:
            wrong = pipe.ask(wire.CMD_READ, *((512, 100) if kind == "wrong" else (SIZE, 512)))
            assert pipe.wait(wrong)[0] == errno.EINVAL
            continue
        waiting.append(lambda c=cookie, p=place, e=expected: finish(c, p, e))  # type: ignore[misc]
        while len(waiting) > dice.randrange(1, 24):
            waiting.pop(0)()
    for one in waiting:
        one()


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_any_requests_together_are_a_bytearray(rig: Rig, seed: int, structured: bool) -> None:
    pipe, model = Pipe(rig.client(structured)), Model(seed)
    play(pipe, model, 400)
    pipe.close()
    assert rig.content() == model.data


@pytest.mark.parametrize("mode", ["plain", "each", "first"])
def test_guard_off_the_same(tmp_path: Path, mode: str) -> None:
    """Two clients: in the mode "first" the image is another one after the first request."""
    rig = Rig(tmp_path, direct=True, guard=False)
    rig.disk.open(mode)
    pipes = [Pipe(rig.client()) for _ in range(2)]
    model = Model(3)
    for number in range(6):
        play(pipes[number % 2], model, 30)
    for pipe in pipes:
        pipe.close()
    assert rig.content() == model.data


def test_a_read_only_disk_takes_no_write(rig: Rig) -> None:
    warmed(rig).close()
    rig.disk.read_only = True
    client = rig.client(structured=True)
    assert client.read(0, 512) == b"w" * 512
    assert [client.write(0, b"!" * 512) for _ in range(3)] == [errno.EPERM] * 3
    assert client.message == "the disk is read-only"
    assert client.read(0, 512) == b"w" * 512
    client.close()


def test_requests_go_on_through_pauses_and_switches(rig: Rig) -> None:
    """No request is lost or fails, and none is served by an image that is closed already."""
    pipe, model = Pipe(rig.client(structured=True)), Model(7)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            play(pipe, model, 20)

    thread, outcome = in_thread(load)
    for number in range(25):
        if number % 2:
            rig.disk.pause()
            rig.disk.unpause()
        else:
            rig.disk.deactivate(queue=True)
            rig.disk.activate()
        time.sleep(0.01)
    stop.set()
    thread.join(60)
    assert outcome == [None]
    pipe.close()
    assert rig.content() == model.data


def warmed(rig: Rig, structured: bool = False) -> Client:
    """A client whose first read and write are over, and whose first block is there."""
    client = rig.client(structured)
    assert client.write(0, b"w" * BLOCK) == 0
    assert client.read(0, 512) == b"w" * 512
    return client


def test_a_tail_that_was_cut_off_is_told_by_python(rig: Rig) -> None:
    client = warmed(rig, structured=True)
    assert client.write(BLOCK, b"x" * BLOCK) == 0
    os.truncate(rig.path, 700 << 10)
    assert client.ask(wire.CMD_READ, 2 * BLOCK - 4096, 4096)[0] == errno.EIO
    assert "its tail was cut off" in client.message
    assert client.read(0, 512) == b"w" * 512
    client.close()
    with pytest.raises(SplitBrain):
        rig.disk.detach(rig.server.stop)


def test_a_write_that_the_kernel_refuses_is_done_by_python(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library writes to a descriptor that is open for reading only."""
    read_only = os.open(rig.path, os.O_RDONLY)
    real = DynamicDisk.straight_map

    def wrong(self: DynamicDisk, writing: bool) -> StraightMap | None:
        found = real(self, writing)
        return found and replace(found, fd=read_only)

    monkeypatch.setattr(DynamicDisk, "straight_map", wrong)
    pipe = Pipe(rig.client())
    data = {n: bytes([n + 1]) * 65536 for n in range(8)}
    for _ in range(3):
        cookies = [pipe.ask(wire.CMD_WRITE, n * 65536, 65536, data[n]) for n in data]
        assert [pipe.wait(cookie) for cookie in cookies] == [(0, b"")] * len(data)
    reads = [pipe.ask(wire.CMD_READ, n * 65536, 65536) for n in data]
    assert [pipe.wait(cookie)[1] for cookie in reads] == list(data.values())
    pipe.close()
    assert rig.content()[: 8 * 65536] == b"".join(data.values())
    os.close(read_only)


def test_who_does_not_read_his_answers_holds_up_nobody(rig: Rig) -> None:
    client = warmed(rig)
    client.send_together(*[(wire.CMD_READ, 0, 256 << 10)] * 100)
    time.sleep(0.1)
    began = time.monotonic()
    rig.disk.pause()
    rig.disk.unpause()
    assert time.monotonic() - began < 5
    for _ in range(100):
        client.take(16)
        assert client.take(256 << 10) == b"w" * (256 << 10)
    client.socket.close()


def test_a_write_whose_data_is_still_coming_holds_up_nobody(rig: Rig) -> None:
    client = warmed(rig)
    head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 99, 4096, 65536)
    client.socket.sendall(head + b"n" * 1000)
    time.sleep(0.05)
    rig.disk.pause()
    client.socket.sendall(b"n" * (65536 - 1000))
    time.sleep(0.05)
    rig.disk.unpause()
    assert wire.REPLY.unpack(client.take(16)) == (wire.REPLY_MAGIC, 0, 99)
    client.socket.close()
    assert rig.content()[4096 : 4096 + 65536] == b"n" * 65536


def test_a_client_that_goes_in_the_middle_leaves_nothing_behind(rig: Rig) -> None:
    for half in (b"", b"\x25\x60", wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, 1, 1, 0, 4096) + b"x"):
        client = warmed(rig)
        for _ in range(30):
            client.send(wire.CMD_READ, 0, 65536)
        client.socket.sendall(half)
        client.socket.close()
    for _ in range(200):
        if not rig.disk.status()["clients"]:
            break
        time.sleep(0.02)
    assert rig.disk.status()["clients"] == 0
    assert rig.disk.shared_gate.inside() == 0
    rig.disk.pause()


def test_many_clients_leave_no_descriptors_and_no_queues(rig: Rig) -> None:
    warmed(rig).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(60):
        client = rig.client()
        assert client.read(0, 512) == b"w" * 512
        client.close()
    for _ in range(200):
        if not rig.disk.status()["clients"]:
            break
        time.sleep(0.02)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_stolen_lease_ends_all_writing_soon(rig: Rig) -> None:
    client = warmed(rig, structured=True)
    thief = rig.another("beta")
    thief.activate(force_epoch=1)
    deadline = time.monotonic() + 5
    answer = 0
    while not answer and time.monotonic() < deadline:
        answer = client.write(0, b"!" * 512)
    assert answer == errno.EIO
    assert rig.disk.state == "fenced"
    # Found within a tenth of a second, plus what a busy machine adds.
    assert [e for e in rig.events if e["event"] == "fenced"]
    before = rig.path.read_bytes()
    assert client.write(0, b"?" * 512) == errno.EIO
    assert client.write(3 * BLOCK, b"?" * 512) == errno.EIO
    assert rig.path.read_bytes() == before
    client.close()
    thief.detach()


def test_a_block_without_a_place_is_refused_when_the_lease_is_gone(rig: Rig) -> None:
    client = warmed(rig, structured=True)
    thief = rig.another("beta")
    thief.activate(force_epoch=1)
    before = rig.path.read_bytes()
    assert client.write(5 * BLOCK, b"?" * 4096) == errno.EIO
    assert "forced activation" in client.message
    assert rig.path.read_bytes() == before
    client.close()
    thief.detach()


def test_latencies_are_counted(rig: Rig) -> None:
    client = warmed(rig)
    for _ in range(50):
        client.read(0, 4096)
    client.write(0, b"x" * 512, wire.FLAG_FUA)
    lines = list(rig.disk.latency.lines("n"))
    assert float(lines[-1].split()[1]) >= 50
    client.close()
