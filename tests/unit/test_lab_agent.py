"""The agent of a host, as a process of its own that talks over pipes instead of SSH."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]


class Peer:
    """The controller's end of the channel."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vhdtool.lab.hosts.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.number = 0

    def message(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        message = json.loads(self.process.stdout.readline())
        assert isinstance(message, dict)
        return message

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.number += 1
        request = {"id": self.number, "op": op, **arguments}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        while (message := self.message()).get("id") != self.number:
            pass
        return message

    def ok(self, op: str, **arguments: Any) -> Any:
        answer = self.ask(op, **arguments)
        assert "ok" in answer, answer
        return answer["ok"]

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.process.kill()
    one.hang_up()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int) -> None:
    wait_for(lambda: not running(pid), failure=f"process {pid} did not end")


def test_an_unknown_operation_is_answered_and_not_fatal(peer: Peer) -> None:
    assert "no operation 'dance'" in peer.ask("dance")["error"]
    assert peer.ask("exists", path=1)["type"] == "TypeError"
    assert isinstance(peer.ok("clock"), float)


def test_a_process_ends_with_the_channel(peer: Peer, tmp_path: Path) -> None:
    pid = peer.ok("spawn", argv=["sleep", "60"], log=str(tmp_path / "log"))
    assert running(pid)
    peer.hang_up()
    wait_gone(pid)


def test_a_process_ends_when_the_agent_is_killed(peer: Peer, tmp_path: Path) -> None:
    pid = peer.ok("spawn", argv=["sleep", "60"], log=str(tmp_path / "log"))
    # setpriv sets the death signal, then becomes the command.
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    peer.process.kill()
    wait_gone(pid)


def test_an_exit_is_told_and_only_own_processes_are_signalled(peer: Peer, tmp_path: Path) -> None:
    pid = peer.ok("spawn", argv=["sleep", "60"], log=str(tmp_path / "log"))
    assert peer.ok("kill", pid=os.getpid(), signal=int(signal.SIGTERM)) is False
    assert peer.ok("kill", pid=pid, signal=int(signal.SIGKILL)) is True
    assert peer.message() == {"exited": pid, "status": -9}


def test_bytes_of_a_socket_pass_both_ways(peer: Peer, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        stream = peer.ok("connect", path=path, patience=5)
        client, _ = server.accept()
        with client:
            client.sendall(b"there")
            message = peer.message()
            assert (message["stream"], base64.b64decode(message["data"])) == (stream, b"there")
            peer.ok("send", stream=stream, data=base64.b64encode(b"back").decode())
            assert client.recv(10) == b"back"
        assert peer.message() == {"stream": stream, "eof": True}


def test_bytes_of_a_terminal_pass_both_ways(peer: Peer) -> None:
    near, far = os.openpty()
    try:
        stream = peer.ok("connect", path=os.ttyname(far), patience=5)
        os.write(near, b"ready\n")
        message = peer.message()
        assert (message["stream"], base64.b64decode(message["data"])) == (stream, b"ready\n")
        peer.ok("send", stream=stream, data=base64.b64encode(b"go\n").decode())
        assert os.read(near, 10) == b"go\n", "the terminal is not raw"
    finally:
        os.close(near)
        os.close(far)


def test_a_command_for_the_end_runs_when_the_channel_ends(peer: Peer, tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    for words in (["false"], ["touch", str(mark)]):
        peer.ok("at-end", argv=words)
    assert not mark.exists()
    peer.hang_up()
    assert mark.exists()


def test_a_socket_that_never_comes_is_one_line(peer: Peer, tmp_path: Path) -> None:
    answer = peer.ask("connect", path=str(tmp_path / "none"), patience=0.05)
    assert "nothing listens" in answer["error"]


def test_a_sparse_file_is_fetched_without_its_holes(peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as out:
        out.truncate(64 << 20)
        out.seek(32 << 20)
        out.write(b"x" * 4096)
    answer = peer.ok("fetch", path=str(path))
    assert answer["size"] == 64 << 20
    assert sum(len(packed) for _, packed in answer["extents"]) < 10_000
    assert any(at <= 32 << 20 for at, _ in answer["extents"])


def test_a_snapshot_is_kept_until_it_is_asked_for(peer: Peer, tmp_path: Path) -> None:
    path = str(tmp_path / "d.vhd")
    peer.ok("create", path=path, size=64 << 20, block=2 << 20)
    number = peer.ok("metadata", path=path)
    (snapshot,) = peer.ok("snapshots", numbers=[number])
    assert snapshot["schema"] == 1
    assert snapshot["header"]["max_entries"] == 32


def test_a_second_run_on_the_same_host_is_turned_away(peer: Peer, tmp_path: Path) -> None:
    lock = str(tmp_path / "run.lock")
    peer.ok("claim", path=lock)
    other = Peer()
    try:
        assert "another run is using this host" in other.ask("claim", path=lock)["error"]
        peer.hang_up()
        other.ok("claim", path=lock)
    finally:
        other.hang_up()
