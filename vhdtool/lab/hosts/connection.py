"""A lab host as the controller sees it: one SSH connection, one agent, replies and streams.

Every call of `Host.call` is one round trip on an open channel (about 0.2 ms). Bytes of a host's
Unix sockets (QMP, console, the shim's control) arrive through `Host.connect`.
"""

import base64
import errno
import itertools
import json
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.channel import Channel

CALL_TIMEOUT = 30.0
"""Seconds to wait for a reply; the first one includes the login."""
RECORD_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of the disk on which the record is written, not of the channel."""
OnData = Callable[[bytes], None]


@dataclass(frozen=True)
class HostConfig:
    """How to reach a host, and its paths; the role `migration` writes it."""

    name: str
    ssh: str
    address: str
    python: str
    lib: str
    private_dir: str
    cache_dir: str
    qemu: str = "qemu-system-x86_64"
    sudo: bool = False
    """Whether the login user becomes root by `sudo` without a password."""

    def command(self) -> list[str]:
        """The command that starts the agent. `env`: the login shell may be any."""
        # ssh may pass on a locale of this machine that the host does not have.
        command = ["env", "LC_ALL=C.UTF-8", f"PYTHONPATH={self.lib}", self.python]
        command += ["-m", "vhdtool.lab.hosts.agent"]
        return ["sudo", "-n", "--", *command] if self.sudo else command


class RemoteError(LabError):
    """An operation failed on the host; `kind` is the class of the error there."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Host:
    """A context manager: at its end the agent ends, with all processes that it started."""

    def __init__(self, config: HostConfig, ssh_config: Path | None) -> None:
        self.config = config
        self.name = config.name
        self.clock_offset = 0.0
        """Seconds to add to this host's monotonic clock to get the controller's."""
        self.on_exit: dict[int, Callable[[int], None]] = {}
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._streams: dict[int, OnData] = {}
        self._early: dict[int, list[bytes]] = {}
        self._lock = threading.Lock()
        self._channel = Channel(config.ssh, ssh_config, config.command())
        threading.Thread(target=self._listen, name=f"host-{self.name}", daemon=True).start()
        try:
            self._synchronise_clock()
        except BaseException:
            self.close()
            raise

    def _synchronise_clock(self) -> None:
        """Set `clock_offset`; its error is at most half of the quickest of a few round trips."""
        best = None
        for _ in range(8):
            before = time.monotonic()
            there = float(self.call("clock"))
            after = time.monotonic()
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) / 2 - there)
        assert best is not None
        self.clock_offset = best[1]

    # calls

    def call(self, op: str, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Any:
        """One operation; its result. Raises RemoteError, or LabError when the host is gone."""
        return self.result(self.start(op, **arguments), op, timeout)

    def start(self, op: str, **arguments: Any) -> "Future[Any]":
        """Send an operation without waiting for its reply."""
        number = next(self._ids)
        future: Future[Any] = Future()
        self._waiting[number] = future
        self._send({"id": number, "op": op, **arguments})
        return future

    def result(self, future: "Future[Any]", op: str, timeout: float = CALL_TIMEOUT) -> Any:
        try:
            return future.result(timeout)
        except FutureTimeout:
            if not self._channel.heard:
                raise LabError(f"host {self.name}: {self._channel.why_it_ended()}") from None
            raise LabError(f"host {self.name}: no answer to {op} within {timeout:.0f} s") from None

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._channel.send(data)
        except OSError:
            raise LabError(f"host {self.name}: {self._channel.why_it_ended()}") from None

    def _listen(self) -> None:
        parts: list[bytes] = []
        failure: OSError | ValueError | None = None
        try:
            while data := self._channel.receive():
                *ended, rest = data.split(b"\n")
                for piece in ended:
                    line = b"".join([*parts, piece])
                    parts = []
                    # A shell's start-up file may greet on the same stream.
                    if line.startswith(b"{"):
                        self._received(json.loads(line))
                parts.append(rest)
        except (OSError, ValueError) as error:
            failure = error
        if isinstance(failure, OSError) and failure.errno in RECORD_ERRORS:
            why = f"host {self.name}: its output cannot be recorded here: {failure.strerror}"
        else:
            why = f"host {self.name}: {self._channel.why_it_ended()}"
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(LabError(why))

    def _received(self, message: dict[str, Any]) -> None:
        if "stream" in message:
            data = base64.b64decode(message.get("data", ""))
            with self._lock:
                handler = self._streams.get(message["stream"])
                if handler is None:
                    self._early.setdefault(message["stream"], []).append(data)
                    return
            handler(data)
        elif "exited" in message:
            handler_exit = self.on_exit.pop(message["exited"], None)
            if handler_exit is not None:
                handler_exit(message["status"])
        else:
            future = self._waiting.pop(message["id"], None)
            if future is None:
                return
            if "error" in message:
                text = f"{self.name}: {message['error']}"
                future.set_exception(RemoteError(text, message["type"]))
            else:
                future.set_result(message["ok"])

    # streams

    def connect(self, path: str, on_data: OnData, timeout: float = 30.0) -> int:
        """Connect to a Unix socket of the host; `on_data(b"")` means its end."""
        number = int(self.call("connect", timeout + 5, path=path, patience=timeout))
        with self._lock:
            self._streams[number] = on_data
            early = self._early.pop(number, [])
        for data in early:
            on_data(data)
        return number

    def send(self, stream: int, data: bytes) -> None:
        self._send({"op": "send", "stream": stream, "data": base64.b64encode(data).decode()})

    # files

    def read(self, path: str, limit: int = 4 << 20) -> bytes:
        """The last `limit` bytes of a file; nothing when it does not exist."""
        return base64.b64decode(self.call("read", path=path, limit=limit))

    def write(self, path: str, data: bytes) -> None:
        self.call("write", path=path, data=base64.b64encode(data).decode())

    def last_line(self, path: str) -> str:
        """The last line of a log, for a message; never raises."""
        try:
            lines = self.read(path, 4096).decode(errors="replace").strip().splitlines()
        except LabError:
            lines = []
        return lines[-1] if lines else "its log is empty"

    def fetch(self, path: str, to: Path) -> None:
        """Copy a sparse file, holes as holes."""
        answer = self.call("fetch", 120, path=path)
        with open(to, "wb") as out:
            for offset, packed in answer["extents"]:
                out.seek(offset)
                out.write(zlib.decompress(base64.b64decode(packed)))
            out.truncate(answer["size"])

    # the end

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
