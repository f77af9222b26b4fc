"""A lab host as the controller sees it: one SSH connection, one agent, replies and streams.

Every call of `Host.call` is one round trip on an open channel (about 0.2 ms). Bytes of a host's
Unix sockets (QMP, console, the shim's control) arrive through `Host.connect`.
"""

import base64
import itertools
import json
import logging
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from vhdtool.errors import LabError

CALL_TIMEOUT = 30.0
OnData = Callable[[bytes], None]


@dataclass(frozen=True)
class HostConfig:
    """How to reach a host and where things are there; the role `migration` writes it."""

    name: str
    ssh: str
    address: str
    python: str
    lib: str
    private_dir: str
    cache_dir: str
    qemu: str = "qemu-system-x86_64"


class RemoteError(LabError):
    """The agent could not do what was asked; `kind` is the class of the error there."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Host:
    """Use as a context manager; leaving it ends the agent and all that it started."""

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
        self._client = self._log_in(ssh_config)
        command = f"PYTHONPATH={config.lib} exec {config.python} -m vhdtool.handover.agent"
        # All three are kept: collecting a paramiko file closes the channel under it.
        self._stdin, self._stdout, self._stderr = self._client.exec_command(command)
        threading.Thread(target=self._listen, name=f"host-{self.name}", daemon=True).start()
        self._synchronise_clock()

    def _log_in(self, ssh_config: Path | None) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        options: dict[str, Any] = {"hostname": self.config.ssh}
        if ssh_config is not None:
            entry = paramiko.SSHConfig.from_path(str(ssh_config)).lookup(self.config.ssh)
            options["hostname"] = entry.get("hostname", self.config.ssh)
            options["port"] = int(entry.get("port", 22))
            options["username"] = entry.get("user")
            options["key_filename"] = entry.get("identityfile")
            if "proxycommand" in entry:
                options["sock"] = paramiko.ProxyCommand(entry["proxycommand"])
            for known in entry.get("userknownhostsfile", "").split():
                client.load_host_keys(str(Path(known).expanduser()))
        client.load_system_host_keys()
        try:
            client.connect(timeout=10, allow_agent=ssh_config is None, **options)
        except (OSError, paramiko.SSHException, EOFError) as error:
            raise LabError(
                f"host {self.name}: no SSH connection to {self.config.ssh}: "
                f"{error or type(error).__name__}; try `ssh {self.config.ssh} true`"
            ) from error
        return client

    def _synchronise_clock(self) -> None:
        """The quickest of a few round trips bounds the error to half of it."""
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
        """One operation of the agent. Raises RemoteError, or LabError when the host is gone."""
        return self.result(self.start(op, **arguments), op, timeout)

    def start(self, op: str, **arguments: Any) -> "Future[Any]":
        """Sends an operation and does not wait for its reply."""
        number = next(self._ids)
        future: Future[Any] = Future()
        self._waiting[number] = future
        self._send({"id": number, "op": op, **arguments})
        return future

    def result(self, future: "Future[Any]", op: str, timeout: float = CALL_TIMEOUT) -> Any:
        try:
            return future.result(timeout)
        except FutureTimeout:
            raise LabError(f"host {self.name}: no answer to {op} within {timeout:.0f} s") from None

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._lock:
                self._stdin.write(json.dumps(message) + "\n")
                self._stdin.flush()
        except OSError as error:
            raise LabError(f"host {self.name}: the SSH channel is gone: {error}") from error

    def _listen(self) -> None:
        """Splits lines itself: paramiko's readline is quadratic in the length of a line."""
        channel = self._stdout.channel
        parts: list[bytes] = []
        try:
            while data := channel.recv(1 << 20):
                *ended, rest = data.split(b"\n")
                for piece in ended:
                    self._received(json.loads(b"".join([*parts, piece])))
                    parts = []
                parts.append(rest)
        except (OSError, ValueError) as error:
            logging.getLogger("hosts").debug("%s: %s", self.name, error)
        last = self._last_words()
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(LabError(f"host {self.name}: the agent ended: {last}"))

    def _last_words(self) -> str:
        try:
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "the connection was closed"

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

    def connect(self, path: str, on_data: OnData, timeout: float = 10.0) -> int:
        """Connects to a Unix socket of the host; `on_data(b"")` means its end."""
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

    def fetch(self, path: str, to: Path) -> None:
        """Copies a sparse file, holes as holes."""
        answer = self.call("fetch", 120, path=path)
        with open(to, "wb") as out:
            for offset, packed in answer["extents"]:
                out.seek(offset)
                out.write(zlib.decompress(base64.b64decode(packed)))
            out.truncate(answer["size"])

    # the end

    def close(self) -> None:
        try:
            self._stdin.channel.shutdown_write()
            self._stdout.channel.status_event.wait(5)
        except (OSError, EOFError):
            pass
        self._client.close()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
