"""What `tap-ctl` does: asks tapdisks over their control sockets, and keeps the minors.

All functions raise TapctlError with the errno that the command exits with. tests/interop holds them
to what the real tap-ctl sends and says.
"""

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.minor_files import Minors, TapctlError, numbers
from vhdtool.tapdisk.tapctl.wire import Message, Params

__all__ = ["Entry", "TapCtl", "TapctlError", "Unexpected"]

LOOK_PATIENCE = 10.0
"""Seconds that looking at a tapdisk may take. Changing one may take as long as it takes."""


class Unexpected(TapctlError):
    """tapdisk refused to attach or detach; the command has only one errno for that."""


@dataclass(frozen=True)
class Entry:
    """A line of the list; None where there is nothing."""

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
        self.minors = Minors(run_dir / "tapdisk")

    # the wire

    @contextlib.contextmanager
    def _asked(self, pid: int, message: Message, patience: float | None) -> Iterator[socket.socket]:
        doing = f"tapdisk {pid}"
        if pid < 0:
            raise TapctlError(errno.EINVAL, doing)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(patience)
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

    def ask(
        self,
        pid: int,
        message: Message,
        wanted: int,
        patience: float | None = None,
        behind: bytes = b"",
    ) -> Message:
        """The one answer to a request, `behind` which more bytes may follow; of the kind `wanted`.

        Waits without end unless `patience` (seconds) is given, as blktap's tool does.
        """
        with self._asked(pid, message, patience) as client:
            if behind:
                client.sendall(behind)
            answer = Message.unpack(self._receive(client))
        return self._checked(pid, answer, wanted)

    def _checked(self, pid: int, answer: Message, wanted: int) -> Message:
        if answer.kind == wire.ERROR:
            number, text = wire.response_of(answer)
            kind = Unexpected if wanted in (wire.ATTACH_RSP, wire.DETACH_RSP) else TapctlError
            if kind is Unexpected:
                number, text = errno.EINVAL, text or os.strerror(number)
            raise kind(number or errno.EIO, f"tapdisk {pid}", text)
        if answer.kind != wanted:
            raise TapctlError(errno.EINVAL, f"tapdisk {pid}", f"answered {answer.kind}")
        return answer

    # processes

    def spawn(self, faithful: bool = False) -> int:
        """Starts a tapdisk that outlives us; its pid."""
        words = [sys.executable, "-m", "vhdtool.tapdisk.tapctl.process"]
        words += ["--run-dir", str(self.run_dir)] + (["--faithful"] if faithful else [])
        root = str(Path(__file__).resolve().parent.parent.parent)
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        child = subprocess.Popen(
            words,
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
        self.ask(pid, Message(wire.ATTACH, minor), wire.ATTACH_RSP)

    def detach(self, pid: int, minor: int) -> None:
        self.ask(pid, Message(wire.DETACH, minor), wire.DETACH_RSP)

    def open(self, pid: int, minor: int, params: Params, behind: bytes = b"") -> int:
        """Opens an image; the size of its disk in bytes. `behind`: a log's path, or a key."""
        message = self._with_params(wire.OPEN, minor, params)
        return wire.image_of(self.ask(pid, message, wire.OPEN_RSP, behind=behind))

    def close(
        self, pid: int, minor: int, patience: float | None = None, force: bool = False
    ) -> None:
        kind = wire.FORCE_SHUTDOWN if force else wire.CLOSE
        self.ask(pid, Message(kind, minor), wire.CLOSE_RSP, patience)

    def pause(self, pid: int, minor: int, patience: float | None = None) -> None:
        self.ask(pid, Message(wire.PAUSE, minor), wire.PAUSE_RSP, patience)

    def unpause(self, pid: int, minor: int, params: Params, behind: bytes = b"") -> None:
        message = self._with_params(wire.RESUME, minor, params)
        self.ask(pid, message, wire.RESUME_RSP, behind=behind)

    def _with_params(self, kind: int, minor: int, params: Params) -> Message:
        try:
            return Message(kind, minor, params.pack())
        except wire.MessageError as error:
            raise TapctlError(errno.ENAMETOOLONG, "tapdisk", str(error)) from None

    def create(self, params: Params, behind: bytes = b"", faithful: bool = False) -> Path:
        """allocate, spawn, attach and open in one; takes all back when one of them fails."""
        minor, path = self.minors.allocate()
        pid = None
        try:
            pid = self.spawn(faithful)
            self.attach(pid, minor)
            self.open(pid, minor, replace(params, minor=minor), behind)
        except BaseException:
            if pid is not None:
                with contextlib.suppress(TapctlError):
                    self.detach(pid, minor)
            self.minors.free(minor)
            raise
        return path

    def destroy(self, pid: int, minor: int, patience: float | None = None) -> None:
        """close, detach and free in one."""
        self.close(pid, minor, patience)
        self.detach(pid, minor)
        self.minors.free(minor)

    def stats(self, pid: int, minor: int) -> str:
        """JSON text."""
        with self._asked(pid, Message(wire.STATS, minor), LOOK_PATIENCE) as client:
            answer = Message.unpack(self._receive(client))
            length = wire.stats_of(self._checked(pid, answer, wire.STATS_RSP))
            return self._receive(client, length).decode("utf-8", "surrogateescape")

    # looking

    def entries(self, only: int | None = None) -> list[Entry]:
        """All minors and tapdisks (or one process), those without the other included."""
        found: list[Entry] = []
        for pid in [only] if only is not None else numbers(self.run_dir, r"ctl(\d+)"):
            try:
                answer = self.ask(pid, Message(wire.PID), wire.PID_RSP)
            except TapctlError:
                continue  # no such process, or it left its socket behind
            pid = wire.pid_of(answer)
            try:
                found += self._of(pid) or [Entry(pid)]
            except TapctlError:
                found.append(Entry(pid))
        if only is None:
            served = {entry.minor for entry in found}
            orphans = [minor for minor in self.minors.all() if minor not in served]
            found += [Entry(minor=minor) for minor in orphans]
        return found

    def _of(self, pid: int) -> list[Entry]:
        """The minors of one process, the one that was attached last first."""
        entries: list[Entry] = []
        with self._asked(pid, Message(wire.LIST, wire.ALL), LOOK_PATIENCE) as client:
            while True:
                answer = Message.unpack(self._receive(client))
                count, minor, state, args = wire.listed_of(
                    self._checked(pid, answer, wire.LIST_RSP)
                )
                if count == 0:
                    return entries[::-1]
                entries.append(Entry(pid, minor, state, args))

    def wait_gone(self, pid: int, patience: float) -> bool:
        """Whether the process ended within `patience` seconds."""
        deadline = time.monotonic() + patience
        while (self.run_dir / f"ctl{pid}").exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True
