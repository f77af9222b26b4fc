"""The commands of `tap-ctl`: requests to tapdisks over their control sockets, and minors.

All methods raise TapctlError with the errno that the command exits with. tests/interop compares
them with what the real tap-ctl sends and prints.
"""

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.minor_files import MinorFiles, TapctlError, numbers
from vhdtool.tapdisk.tapctl.wire import Message, Params

__all__ = ["Entry", "TapCtl", "TapctlError", "Unexpected"]

QUERY_TIMEOUT = 10.0
"""Seconds. Operations that change a disk have no timeout."""


class Unexpected(TapctlError):
    """Raised when tapdisk refuses to attach or detach, for which tap-ctl has only EINVAL."""


@dataclass(frozen=True)
class Entry:
    """A line of `list`. A tapdisk may have no minor, and a minor no tapdisk: None."""

    pid: int | None = None
    minor: int | None = None
    state: int | None = None
    args: str = ""

    @property
    def kind(self) -> str:
        return self.args.partition(":")[0]

    @property
    def path(self) -> str:
        return self.args.partition(":")[2]


class TapCtl:
    """The tapdisks of one control directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.minors = MinorFiles(run_dir / "tapdisk")

    # requests

    @contextlib.contextmanager
    def _sent(self, pid: int, message: Message, timeout: float | None) -> Iterator[socket.socket]:
        doing = f"tapdisk {pid}"
        if pid < 0:
            raise TapctlError(errno.EINVAL, doing)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(timeout)
        with client:
            try:
                client.connect(str(self.run_dir / f"ctl{pid}"))
                client.sendall(message.pack())
                yield client
            except TimeoutError:
                raise TapctlError(errno.ETIMEDOUT, doing) from None
            except OSError as error:
                raise TapctlError(error.errno or errno.EIO, doing) from None

    def _receive(self, client: socket.socket, size: int = wire.SIZE) -> bytes:
        data = b""
        while len(data) < size:
            part = client.recv(size - len(data))
            if not part:
                raise TapctlError(errno.EIO, "tapdisk", "it ended the connection")
            data += part
        return data

    def request(
        self,
        pid: int,
        message: Message,
        expected: int,
        timeout: float | None = None,
        trailer: bytes = b"",
    ) -> Message:
        """Sends a request and its trailer; returns the reply, which has the kind `expected`.

        Waits for ever without a `timeout` (seconds), as blktap's tool does.
        """
        with self._sent(pid, message, timeout) as client:
            if trailer:
                client.sendall(trailer)
            reply = Message.unpack(self._receive(client))
        return self._checked(pid, reply, expected)

    def _checked(self, pid: int, reply: Message, expected: int) -> Message:
        if reply.kind == wire.ERROR:
            number, text = wire.parse_response(reply)
            kind = Unexpected if expected in (wire.ATTACH_RSP, wire.DETACH_RSP) else TapctlError
            if kind is Unexpected:
                number, text = errno.EINVAL, text or os.strerror(number)
            raise kind(number or errno.EIO, f"tapdisk {pid}", text)
        if reply.kind != expected:
            raise TapctlError(errno.EINVAL, f"tapdisk {pid}", f"replied {reply.kind}")
        return reply

    # processes

    def spawn(self, faithful: bool = False) -> int:
        """Starts a tapdisk that outlives this process; returns its pid."""
        command = [sys.executable, "-m", "vhdtool.tapdisk.tapctl.process"]
        command += ["--run-dir", str(self.run_dir)] + (["--faithful"] if faithful else [])
        root = str(Path(__file__).resolve().parent.parent.parent)
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert child.stdout is not None
        with child.stdout:
            line = os.fsdecode(child.stdout.readline())
        if (code := child.wait()) != 0:
            raise TapctlError(code if code > 0 else errno.EINTR, "spawn")
        match = re.search(r"ctl(\d+)$", line.strip())
        if match is None:
            raise TapctlError(errno.EIO, "spawn", f"see {self.run_dir}/tapdisk.log")
        return int(match[1])

    def attach(self, pid: int, minor: int) -> None:
        self.request(pid, Message(wire.ATTACH, minor), wire.ATTACH_RSP)

    def detach(self, pid: int, minor: int) -> None:
        self.request(pid, Message(wire.DETACH, minor), wire.DETACH_RSP)

    def open(self, pid: int, minor: int, params: Params, trailer: bytes = b"") -> int:
        """Opens an image; returns the size of its disk in bytes."""
        message = self._with_params(wire.OPEN, minor, params)
        return wire.parse_image(self.request(pid, message, wire.OPEN_RSP, trailer=trailer))

    def close(
        self, pid: int, minor: int, timeout: float | None = None, force: bool = False
    ) -> None:
        kind = wire.FORCE_SHUTDOWN if force else wire.CLOSE
        self.request(pid, Message(kind, minor), wire.CLOSE_RSP, timeout)

    def pause(self, pid: int, minor: int, timeout: float | None = None) -> None:
        self.request(pid, Message(wire.PAUSE, minor), wire.PAUSE_RSP, timeout)

    def unpause(self, pid: int, minor: int, params: Params, trailer: bytes = b"") -> None:
        message = self._with_params(wire.RESUME, minor, params)
        self.request(pid, message, wire.RESUME_RSP, trailer=trailer)

    def _with_params(self, kind: int, minor: int, params: Params) -> Message:
        try:
            return Message(kind, minor, params.pack())
        except wire.MessageError as error:
            raise TapctlError(errno.ENAMETOOLONG, "tapdisk", str(error)) from None

    def create(self, params: Params, trailer: bytes = b"", faithful: bool = False) -> Path:
        """Allocates, spawns, attaches and opens; undoes all when one of them fails."""
        minor, path = self.minors.allocate()
        pid = None
        try:
            pid = self.spawn(faithful)
            self.attach(pid, minor)
            self.open(pid, minor, replace(params, minor=minor), trailer)
        except BaseException:
            if pid is not None:
                with contextlib.suppress(TapctlError):
                    self.detach(pid, minor)
            self.minors.free(minor)
            raise
        return path

    def destroy(self, pid: int, minor: int, timeout: float | None = None) -> None:
        """Closes, detaches and frees."""
        self.close(pid, minor, timeout)
        self.detach(pid, minor)
        self.minors.free(minor)

    def stats(self, pid: int, minor: int) -> str:
        """Returns JSON text."""
        with self._sent(pid, Message(wire.STATS, minor), QUERY_TIMEOUT) as client:
            reply = Message.unpack(self._receive(client))
            length = wire.parse_stats(self._checked(pid, reply, wire.STATS_RSP))
            return self._receive(client, length).decode("utf-8", "surrogateescape")

    # queries

    def entries(self, only: int | None = None) -> list[Entry]:
        """Lists all minors and tapdisks, or those of one process."""
        found: list[Entry] = []
        for pid in [only] if only is not None else numbers(self.run_dir, r"ctl(\d+)"):
            try:
                reply = self.request(pid, Message(wire.PID), wire.PID_RSP)
            except TapctlError:
                continue  # no such process, or only its socket is left
            pid = wire.parse_pid(reply)
            try:
                found += self._entries_of(pid) or [Entry(pid)]
            except TapctlError:
                found.append(Entry(pid))
        if only is None:
            served = {entry.minor for entry in found}
            orphans = [minor for minor in self.minors.all() if minor not in served]
            found += [Entry(minor=minor) for minor in orphans]
        return found

    def _entries_of(self, pid: int) -> list[Entry]:
        """Lists the minors of one process, the latest attached first."""
        entries: list[Entry] = []
        with self._sent(pid, Message(wire.LIST, wire.ALL), QUERY_TIMEOUT) as client:
            while True:
                reply = Message.unpack(self._receive(client))
                count, minor, state, args = wire.parse_list_entry(
                    self._checked(pid, reply, wire.LIST_RSP)
                )
                if count == 0:
                    return entries[::-1]
                entries.append(Entry(pid, minor, state, args))
