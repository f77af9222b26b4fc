"""Requests that the fast path serves: the same replies as the plain path's, and the same rules."""

import contextlib
import errno
import mmap
import os
import random
import socket
import subprocess
import sys
import threading
import time
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fast_path_rig import BLOCK, SIZE, Model, Pipe, Rig, play
from tests.support.nbd_raw import Client
from tests.support.shims import in_thread
from tests.support.waiting import wait_for
from vhdtool.errors import SplitBrain
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.open import RAW
from vhdtool.lab.hosts import bundle
from vhdtool.nbd import fast_path
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.backend import FastPathLayout
from vhdtool.nbd.metrics import BUCKETS, new_counters
from vhdtool.nbd.plain_path import PlainPath
from vhdtool.tapdisk.claim import LEASE_CHECK
from vhdtool.tapdisk.router import RequestRouter

OFF = os.environ.get("VHDTOOL_FAST_PATH") == "off"


def test_the_fast_path_was_built() -> None:
    """`make setup` builds it; all tests here run without it too, with VHDTOOL_FAST_PATH=off."""
    assert fast_path.available is not OFF


@pytest.fixture(params=[True, False], ids=["direct", "cached"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    one = Rig(tmp_path, request.param)
    one.disk.activate()
    yield one
    one.server.stop()
    one.disk.detach()


def test_python_is_not_asked_for_what_has_its_place(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = PlainPath.serve_next

    def counted(self: PlainPath) -> bool:
        nonlocal steps
        steps += 1
        return step(self)

    monkeypatch.setattr(PlainPath, "serve_next", counted)
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
    told = [event for event in rig.events if event["event"] == "allocated"]
    assert status["allocations"] == len(told) == 3
    client.close()


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


def test_a_read_only_disk_takes_no_write(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed(rig).close()
    monkeypatch.setattr(RequestRouter, "read_only", True)
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
        # The load goes on for a while, until the next change comes at any moment of it.
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
    """The fast path writes to a descriptor that is open for reading only."""
    read_only = os.open(rig.path, os.O_RDONLY)
    real = DynamicDisk.fast_path_layout

    def wrong(self: DynamicDisk, writing: bool) -> FastPathLayout | None:
        found = real(self, writing)
        return found and replace(found, fd=read_only)

    monkeypatch.setattr(DynamicDisk, "fast_path_layout", wrong)
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
    client.wait_until_full()
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
    wait_for(lambda: rig.server.idle_clients == 1)
    client.socket.sendall(head + b"n" * 1000)
    wait_for(lambda: rig.server.idle_clients == 0)
    rig.disk.pause()
    client.socket.sendall(b"n" * (65536 - 1000))
    wait_for(lambda: rig.disk.status()["waiting"])
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
    wait_for(lambda: rig.disk.status()["clients"] == 0)
    assert rig.disk.router.fast_path_gate.inside() == 0
    rig.disk.pause()


def test_what_was_asked_before_the_client_ended_is_answered(rig: Rig) -> None:
    client = warmed(rig)
    raw = b""
    for number in range(4):
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, number, number << 16, 65536)
        raw += head + bytes([number]) * 65536
    client.socket.sendall(raw + head + b"half of it")
    client.socket.shutdown(socket.SHUT_WR)
    answers = [wire.REPLY.unpack(client.take(16)) for _ in range(4)]
    assert sorted(answers) == [(wire.REPLY_MAGIC, 0, number) for number in range(4)]
    drained(client)
    client.socket.close()
    assert rig.content()[: 4 << 16] == b"".join(bytes([n]) * 65536 for n in range(4))


def drained(client: Client) -> None:
    """Reads until the server has nothing more to say."""
    with contextlib.suppress(ConnectionError):
        while client.socket.recv(1 << 20):
            pass


@pytest.mark.parametrize("seed", range(25))
def test_malformed_requests_end_their_client_only(rig: Rig, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(4):
        client = warmed(rig, structured=dice.random() < 0.5)
        raw = bytearray()
        for number in range(dice.randrange(1, 12)):
            command = dice.choice((0, 0, 1, 1, 3, 4, 5, 6, 7, 99))
            length = dice.choice((0, 512, 4096, 65536, 1 << 20, (1 << 32) - 1))
            offset = dice.choice((0, 512, BLOCK - 512, SIZE - 512, SIZE, (1 << 64) - 512))
            raw += wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, number, offset, length)
            if command == 1 and length <= 65536:
                raw += dice.randbytes(length)
        for _ in range(dice.randrange(3)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        thread, _ = in_thread(lambda c=client: drained(c))
        with contextlib.suppress(ConnectionError):
            client.socket.sendall(raw[: dice.randrange(1, len(raw) + 1)])
            client.socket.shutdown(socket.SHUT_WR)
        thread.join(20)
        client.socket.close()
    assert rig.disk.state == "active"
    assert rig.disk.router.fast_path_gate.inside() == 0
    rig.content()


def test_many_clients_leave_no_descriptors_and_no_queues(rig: Rig) -> None:
    warmed(rig).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(60):
        client = rig.client()
        assert client.read(0, 512) == b"w" * 512
        client.close()
    wait_for(lambda: rig.disk.status()["clients"] == 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_client_takes_memory_for_what_it_asks_and_no_more(rig: Rig) -> None:
    warmed(rig).close()
    before, clients = resident(), [rig.client() for _ in range(40)]
    assert {client.read(0, 512) for client in clients} == {b"w" * 512}
    assert resident() - before < 40 * (1 << 20)
    for client in clients:
        client.close()


def test_an_idle_client_gives_the_memory_of_large_requests_back(rig: Rig) -> None:
    client = warmed(rig)
    # Python's memory for a client is smaller, and stays.
    before, most = resident(), (24 if OFF else 6) << 20
    client.send_together(*[(wire.CMD_READ, 0, BLOCK)] * 30)
    left = 30 * (16 + BLOCK)
    while left:
        left -= len(client.socket.recv(1 << 16))
    wait_for(lambda: resident() - before <= most)
    assert rig.disk.status()["clients"] == 1
    client.close()


def test_a_stolen_lease_ends_all_writing_soon(rig: Rig) -> None:
    client = warmed(rig, structured=True)
    thief = rig.thief()
    thief.acquire(force_epoch=1)
    assert wait_for(lambda: client.write(0, b"!" * 512), interval=0) == errno.EIO
    assert rig.disk.state == "fenced"
    # Found within a tenth of a second, plus what a busy machine adds.
    assert [e for e in rig.events if e["event"] == "fenced"]
    before = rig.path.read_bytes()
    assert client.write(0, b"?" * 512) == errno.EIO
    assert client.write(3 * BLOCK, b"?" * 512) == errno.EIO
    assert rig.path.read_bytes() == before
    client.close()
    thief.close()


def test_a_slow_client_writes_nothing_after_a_lost_lease(rig: Rig) -> None:
    """Requests that came together are let in one by one: the last may have waited for long."""
    client = warmed(rig)
    time.sleep(1.5 * LEASE_CHECK)  # The next request is one that checks the lease.
    # The lease is looked at here, and what follows is received with one call.
    assert [client.write(0, b"w" * 512) for _ in range(3)] == [0, 0, 0]
    reads = [
        wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_READ, n, 0, BLOCK) for n in range(60)
    ]
    write = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 99, 0, 512)
    client.socket.sendall(b"".join(reads) + write + b"!" * 512)
    client.wait_until_full()
    thief = rig.thief()
    thief.acquire(force_epoch=1)
    time.sleep(1.5 * LEASE_CHECK)  # The requests wait so long that the check is out of date.
    before = rig.path.read_bytes()
    for _ in reads:
        _, error, _ = wire.REPLY.unpack(client.take(16))
        client.take(0 if error else BLOCK)
    assert wire.REPLY.unpack(client.take(16)) == (wire.REPLY_MAGIC, errno.EIO, 99)
    assert rig.path.read_bytes() == before
    client.close()
    thief.close()


def test_without_memory_for_the_fast_path_python_serves(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fast_path.available:
        monkeypatch.setattr(fast_path.c, "Session", no_memory)
    warmed(rig).close()
    rig.disk.pause()


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def test_python_looks_at_the_lease_for_each_request(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that came together behind one that took long."""
    if fast_path.available:
        monkeypatch.setattr(fast_path.c, "Session", no_memory)
    client = warmed(rig)
    thief = rig.thief()
    write, slow = DynamicDisk.write, threading.Event()

    def taken(self: DynamicDisk, offset: int, data: bytes | memoryview) -> None:
        write(self, offset, data)
        if not slow.is_set():
            slow.set()
            time.sleep(1.5 * LEASE_CHECK)  # The check is out of date for the next request.
            thief.acquire(force_epoch=1)

    monkeypatch.setattr(DynamicDisk, "write", taken)
    raw = b""
    for number in range(3):
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, number, 0, 512)
        raw += head + bytes([number]) * 512
    client.socket.sendall(raw)
    assert [wire.REPLY.unpack(client.take(16))[1] for _ in range(3)] == [0, errno.EIO, errno.EIO]
    client.close()
    thief.close()


def test_a_block_is_allocated_in_the_image_that_lacked_it_only(rig: Rig, tmp_path: Path) -> None:
    """A request that waited in a pause may go on with another kind of image."""
    client = warmed(rig)
    rig.disk.pause()
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(SIZE))
    client.send(wire.CMD_WRITE, 5 * BLOCK, 512, 0, b"o" * 512)
    wait_for(lambda: rig.disk.status()["waiting"])
    rig.disk.exchange(other, RAW)
    assert client.receive(wire.CMD_WRITE, 512) == (0, b"")
    client.close()
    rig.disk.detach(rig.server.stop)
    assert other.read_bytes() == bytes(5 * BLOCK) + b"o" * 512 + bytes(SIZE - 5 * BLOCK - 512)


def test_an_allocation_without_the_lease_is_refused(rig: Rig) -> None:
    client = warmed(rig, structured=True)
    thief = rig.thief()
    thief.acquire(force_epoch=1)
    before = rig.path.read_bytes()
    assert client.write(5 * BLOCK, b"?" * 4096) == errno.EIO
    assert "forced activation" in client.message
    assert rig.path.read_bytes() == before
    client.close()
    thief.close()


def test_latencies_are_counted(rig: Rig) -> None:
    client = warmed(rig)
    for _ in range(50):
        client.read(0, 4096)
    client.write(0, b"x" * 512, wire.FLAG_FUA)
    lines = list(rig.disk.router.latency.lines("n"))
    assert float(lines[-1].split()[1]) >= 50
    client.close()


class Bare:
    """A session in C by itself, between two sockets."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        self.gate = fast_path.c.Gate()
        self.inbox = mmap.mmap(-1, 1 << 20)
        self.counters = new_counters()
        self.session = fast_path.c.Session(
            self.server.fileno(), self.inbox, self.counters, self.gate, False, BUCKETS
        )

    def use(self, **changes: Any) -> None:
        layout: dict[str, Any] = {"fd": 0, "size": 8 * BLOCK, "generation": 0, "direct": False}
        layout |= {"writable": True, "block_bytes": BLOCK, "bitmap_bytes": 512, "zeros": True}
        layout |= {"bat": array("I", [0] * 8), "full": bytearray(8), "whole": True}
        self.session.use(**(layout | changes))


@pytest.fixture
def bare() -> Iterator[Bare]:
    if OFF:
        pytest.skip("the fast path is switched off")
    one = Bare()
    yield one
    one.client.close()
    one.server.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"bat": array("I", [0] * 7)},
        {"bat": array("Q", [0] * 8)},
        {"full": bytearray(7)},
        {"full": array("H", [0] * 8)},
        {"size": 9 * BLOCK},
        {"block_bytes": 512},
    ],
)
def test_a_layout_with_too_little_behind_it_is_refused(bare: Bare, changes: Any) -> None:
    bare.use()
    with pytest.raises(ValueError, match="too short"):
        bare.use(**changes)


def test_tables_in_use_cannot_shrink(bare: Bare) -> None:
    bat, full = array("I", [0] * 8), bytearray(8)
    bare.use(bat=bat, full=full)
    with pytest.raises(BufferError):
        bat.pop()
    with pytest.raises(BufferError):
        full.clear()
    bare.session.close()
    bat.pop()
    full.clear()


def test_a_session_checks_what_it_is_given(bare: Bare) -> None:
    session, counters = fast_path.c.Session, new_counters()
    sock, inbox, gate = bare.server.fileno(), bare.inbox, bare.gate
    with pytest.raises(ValueError, match="counters: too short"):
        session(sock, inbox, array("Q", [0] * 3), gate, False, BUCKETS)
    with pytest.raises(ValueError, match="counters: too short"):
        session(sock, inbox, array("I", [0] * 5), gate, False, BUCKETS)
    with pytest.raises(ValueError, match="more than 31 bounds"):
        session(sock, inbox, counters, gate, False, [1.0] * 32)
    with pytest.raises(BufferError):
        session(sock, b"not writable", counters, gate, False, BUCKETS)
    with pytest.raises(TypeError):
        session(sock, inbox, counters, object(), False, BUCKETS)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        session(sock, inbox, counters, gate, False, [None])  # type: ignore[list-item]
    for start, end in ((1, 0), (0, (1 << 20) + 1)):
        with pytest.raises(ValueError, match="outside of the inbox"):
            bare.session.serve(start, end)
    with pytest.raises(ValueError, match="no request failed"):
        bare.session.replied()
    with pytest.raises(ValueError, match="no request failed"):
        bare.session.failed_request()


def test_a_closed_session_only_tells_the_times(bare: Bare) -> None:
    bare.session.close()
    for call in (bare.session.close, bare.session.drain, bare.session.take_latencies, bare.use):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert (bare.session.idle_since, bare.session.stalled_since) == (0, 0)


def test_a_second_thread_is_kept_out_of_a_session(bare: Bare) -> None:
    bare.use()
    thread, result = in_thread(lambda: bare.session.serve(0, 0))
    wait_for(lambda: bare.session.idle_since)
    for call in (bare.session.close, bare.session.drain, bare.use):
        with pytest.raises(RuntimeError, match="another thread"):
            call()
    bare.client.close()
    thread.join(10)
    assert result == [(fast_path.c.DISCONNECTED, 0, 0)]


def test_sessions_leave_no_references(bare: Bare) -> None:
    before = sys.getrefcount(bare.gate)
    for _ in range(50):
        other = Bare()
        other.client.close()
        other.server.close()
        session = fast_path.c.Session(0, bare.inbox, bare.counters, bare.gate, True, BUCKETS)
        del session
    after = sys.getrefcount(bare.gate)
    assert after == before


def available_from(path: Path) -> tuple[bool, str]:
    """Whether a Python whose package is at `path` has the fast path, and what it logs."""
    program = "from vhdtool.nbd import fast_path; print(fast_path.available)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd="/", env={"PYTHONPATH": str(path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout == "True\n", done.stderr


def test_hosts_have_the_fast_path_or_do_without(tmp_path: Path) -> None:
    """They unpack the bundle. One of another kind of machine cannot load what was built here."""
    archive, unpacked = tmp_path / "vhdtool.zip", tmp_path / "lib"
    bundle.write(archive)
    assert available_from(archive) == (False, "")
    with zipfile.ZipFile(archive) as file:
        file.extractall(unpacked)
    assert available_from(unpacked) == (True, "")
    (built,) = unpacked.rglob("_fast_path*.so")
    built.write_bytes(b"\x7fELF of another machine")
    found, logged = available_from(unpacked)
    assert not found
    assert "Python serves all requests" in logged
