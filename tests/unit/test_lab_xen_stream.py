"""The relay of `xl migrate`, between a stand-in for xl and one for its receiver, over real TCP."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_for
from vhdtool.lab.hosts.xen_stream import READY, REPORT

MODULE = "vhdtool.lab.hosts.xen_stream"
GO = b"domain is yours, you are cleared to unpause\0"
BANNER = b"xl migration receiver ready, send binary domain data.\n"
MEMORY = bytes(range(256)) * 2000

RECEIVER = f"""#!/usr/bin/env python3
import os, sys, time
def tell(data): os.write(1, data)
def log(text): print(text, file=open(os.environ["LOG"], "a"))
tell({BANNER!r})
got = b""
while len(got) < {len(MEMORY)}:
    piece = os.read(0, 65536)
    if not piece:
        log("incomplete"); sys.exit(3)
    got += piece
for byte in {READY!r}:
    tell(bytes([byte]))
    time.sleep(0.001)
answer = b""
while len(answer) < {len(GO)}:
    piece = os.read(0, 100)
    if not piece:
        time.sleep(0.2)
        log("destroyed"); sys.exit(4)
    answer += piece
log("unpaused" if answer == {GO!r} and got == {MEMORY!r} else "wrong")
tell({REPORT!r})
time.sleep(0.05)
tell(bytes([0]))
"""


def connects(client: socket.socket, address: str | tuple[str, int]) -> bool:
    try:
        client.connect(address)
    except OSError:
        return False
    return True


class Migration:
    """The relay with both its peers; the test is xl, and the runner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("xl", RECEIVER), ("xenstore-watch", "#!/bin/sh\nexec sleep 60\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.log = folder / "log"
        path = f"{folder}:{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "LOG": str(self.log)}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        self.receiver = self.start("receive", "127.0.0.1", self.port, "127.0.0.1")
        control = str(folder / "control")
        self.relay = self.start("relay", control, "127.0.0.1", self.port, "beta", "xl")
        self.runner = socket.socket(socket.AF_UNIX)
        wait_for(lambda: connects(self.runner, control), 20, process=self.relay)
        self.runner.settimeout(20)
        self.events = self.runner.makefile()

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", MODULE, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.env,
        )  # fmt: skip

    def send(self, data: bytes) -> None:
        assert self.relay.stdin is not None
        self.relay.stdin.write(data)
        self.relay.stdin.flush()

    def read(self, count: int) -> bytes:
        assert self.relay.stdout is not None
        return self.relay.stdout.read(count)

    def event(self) -> dict[str, Any]:
        found = json.loads(self.events.readline())
        assert isinstance(found, dict)
        return found

    def to_ready(self) -> dict[str, Any]:
        assert self.read(len(BANNER)) == BANNER
        self.send(MEMORY)
        return self.event()

    def end(self) -> str:
        """What the receiver said at its end, after the relay has ended too."""
        self.relay.wait(20)
        self.receiver.wait(20)
        return self.log.read_text().strip() if self.log.exists() else ""

    def close(self) -> None:
        self.events.close()
        self.runner.close()
        for child in (self.relay, self.receiver):
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                assert stream is not None
                stream.close()


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    found = Migration(tmp_path)
    yield found
    found.close()


def test_the_guest_is_held_until_the_runner_says_go(migration: Migration) -> None:
    ready = migration.to_ready()
    assert ready["event"] == "ready"
    assert ready["stopped"] <= ready["mono"]
    assert migration.relay.stdout is not None
    os.set_blocking(migration.relay.stdout.fileno(), False)
    time.sleep(0.3)
    assert migration.relay.stdout.read() is None, "xl has heard that the destination is ready"
    os.set_blocking(migration.relay.stdout.fileno(), True)
    migration.runner.sendall(b"go\n")
    assert migration.read(len(READY)) == READY
    migration.send(GO)
    told = migration.event()
    assert (told["event"], told["status"]) == ("unpaused", 0)
    assert migration.read(len(REPORT) + 1) == REPORT + bytes([0])
    assert migration.end() == "unpaused"
    assert migration.relay.returncode == 0


def test_a_refusal_lets_the_receiver_destroy_its_copy(migration: Migration) -> None:
    migration.to_ready()
    migration.runner.sendall(b"refuse\n")
    assert migration.end() == "destroyed", "the relay has not waited for the receiver"
    assert migration.relay.returncode == 1
    assert migration.read(100) == b""


def test_a_runner_that_is_gone_counts_as_a_refusal(migration: Migration) -> None:
    migration.to_ready()
    migration.events.close()
    migration.runner.close()
    assert migration.end() == "destroyed"
    assert migration.relay.returncode == 1


def test_a_runner_that_is_gone_after_its_go_refuses_nothing(migration: Migration) -> None:
    migration.to_ready()
    migration.runner.sendall(b"go\n")
    migration.events.close()
    migration.runner.close()
    assert migration.read(len(READY)) == READY
    time.sleep(0.5)
    migration.send(GO)
    assert migration.read(len(REPORT) + 1) == REPORT + bytes([0])
    assert migration.end() == "unpaused"
    assert migration.relay.returncode == 0


def test_a_refusal_while_memory_is_copied_ends_both(migration: Migration) -> None:
    assert migration.read(len(BANNER)) == BANNER
    migration.send(MEMORY[:1000])
    migration.runner.sendall(b"refuse\n")
    assert migration.end() == "incomplete"
    assert migration.relay.returncode == 1


def test_the_relay_ends_when_xl_is_gone(migration: Migration) -> None:
    migration.to_ready()
    migration.runner.sendall(b"go\n")
    assert migration.relay.stdin is not None
    migration.relay.stdin.close()
    assert migration.end() == "destroyed"


def test_the_relay_ends_when_xl_dies_while_the_guest_is_held(migration: Migration) -> None:
    migration.to_ready()
    assert migration.relay.stdin is not None
    migration.relay.stdin.close()
    assert migration.end() == "destroyed"
    assert migration.relay.returncode == 1


def test_the_relay_ends_when_the_receiver_dies(migration: Migration) -> None:
    assert migration.read(len(BANNER)) == BANNER
    migration.receiver.kill()
    migration.relay.wait(20)
    assert migration.relay.returncode != 0


def test_a_connection_from_another_host_is_not_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", MODULE, "receive", "127.0.0.1", str(port), "192.0.2.1"]
    receiver = subprocess.Popen(words)
    try:
        with socket.socket() as client:
            wait_for(lambda: connects(client, ("127.0.0.1", port)), 20, process=receiver)
            assert client.recv(100) == b""
        assert receiver.poll() is None, "it waits for the right host no longer"
    finally:
        receiver.kill()
        receiver.wait()
