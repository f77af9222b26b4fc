"""What `tap-ctl` does: asks tapdisks over their control sockets, and keeps the minors.

A minor is a file `tapdisk-<n>` in RUN_DIR/tapdisk, as blktap has it without its kernel module. All
functions raise TapctlError with the errno that the command exits with.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk import tapctl_wire as wire
from vhdtool.tapdisk.tapctl_wire import Message, Params

RUN_DIR = Path("/run/blktap-control")
MOST_MINORS = 4096
ANSWER_PATIENCE = 60.0


class TapctlError(VhdtoolError):
    """`errno` is what the command exits with."""

    def __init__(self, number: int, doing: str, why: str = "") -> None:
        super().__init__(f"{doing}: {why or os.strerror(number)}")
        self.errno = number


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

    def __init__(self, run_dir: Path = RUN_DIR) -> None:
        self.run_dir = run_dir
        self.minors_dir = run_dir / "tapdisk"

    # the wire

    @contextlib.contextmanager
    def _asked(self, pid: int, message: Message, patience: float) -> Iterator[socket.socket]:
        doing = f"tapdisk {pid}"
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
        self, pid: int, message: Message, wanted: int, patience: float = ANSWER_PATIENCE
    ) -> Message:
        """The one answer to a request; it must be of the kind `wanted`."""
        with self._asked(pid, message, patience) as client:
            answer = Message.unpack(self._receive(client))
        return self._checked(pid, answer, wanted)

    def _checked(self, pid: int, answer: Message, wanted: int) -> Message:
        if answer.kind == wire.ERROR:
            number, text = wire.response_of(answer)
            raise TapctlError(number or errno.EIO, f"tapdisk {pid}", text)
        if answer.kind != wanted:
            raise TapctlError(errno.EINVAL, f"tapdisk {pid}", f"answered {answer.kind}")
        return answer

    # minors

    def allocate(self) -> tuple[int, Path]:
        """(a free minor, its file), which is taken from now on."""
        try:
            self.minors_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.minors_dir, os.O_RDONLY)
        except OSError as error:
            raise TapctlError(error.errno or errno.EIO, str(self.minors_dir)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for minor in range(MOST_MINORS):
                path = self.minors_dir / f"tapdisk-{minor}"
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                    return minor, path
        finally:
            os.close(lock)
        raise TapctlError(errno.ENOSPC, str(self.minors_dir), "no minor is free")

    def free(self, minor: int) -> None:
        path = self.minors_dir / f"tapdisk-{minor}"
        try:
            path.unlink()
        except OSError as error:
            raise TapctlError(error.errno or errno.EIO, str(path)) from None

    # processes

    def spawn(self, faithful: bool = False) -> int:
        """Starts a tapdisk that outlives us; its pid."""
        try:
            self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TapctlError(error.errno or errno.EIO, str(self.run_dir)) from None
        words = [sys.executable, "-m", "vhdtool.tapdisk.tapctl_server"]
        words += ["--run-dir", str(self.run_dir)] + (["--faithful"] if faithful else [])
        log = os.open(self.run_dir / "tapdisk.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        root = str(Path(__file__).resolve().parent.parent.parent)
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": paths},
            )
        finally:
            os.close(log)
        assert child.stdout is not None
        with child.stdout:
            line = child.stdout.readline().decode()
        match = re.search(r"ctl(\d+)$", line.strip())
        if match is None:
            raise TapctlError(errno.EIO, "spawn", f"see {self.run_dir}/tapdisk.log")
        return int(match[1])

    def attach(self, pid: int, minor: int) -> None:
        self.ask(pid, Message(wire.ATTACH, minor), wire.ATTACH_RSP)

    def detach(self, pid: int, minor: int) -> None:
        self.ask(pid, Message(wire.DETACH, minor), wire.DETACH_RSP)

    def open(self, pid: int, minor: int, args: str, flags: int = 0, parent: int = -1) -> int:
        """Opens an image; the size of its disk in bytes."""
        try:
            body = Params(flags, minor, args, parent).pack()
        except wire.MessageError as error:
            raise TapctlError(errno.ENAMETOOLONG, "open", str(error)) from None
        return wire.image_of(self.ask(pid, Message(wire.OPEN, minor, body), wire.OPEN_RSP))

    def close(self, pid: int, minor: int, patience: float | None = None) -> None:
        self.ask(pid, Message(wire.CLOSE, minor), wire.CLOSE_RSP, patience or ANSWER_PATIENCE)

    def pause(self, pid: int, minor: int, patience: float | None = None) -> None:
        self.ask(pid, Message(wire.PAUSE, minor), wire.PAUSE_RSP, patience or ANSWER_PATIENCE)

    def unpause(self, pid: int, minor: int, args: str = "") -> None:
        try:
            body = Params(path=args).pack()
        except wire.MessageError as error:
            raise TapctlError(errno.ENAMETOOLONG, "unpause", str(error)) from None
        self.ask(pid, Message(wire.RESUME, minor, body), wire.RESUME_RSP)

    def create(self, args: str, flags: int = 0, parent: int = -1, faithful: bool = False) -> Path:
        """allocate, spawn, attach and open in one; takes all back when one of them fails."""
        minor, path = self.allocate()
        pid = None
        try:
            pid = self.spawn(faithful)
            self.attach(pid, minor)
            self.open(pid, minor, args, flags, parent)
        except BaseException:
            if pid is not None:
                with contextlib.suppress(TapctlError):
                    self.detach(pid, minor)
            self.free(minor)
            raise
        return path

    def destroy(self, pid: int, minor: int, patience: float | None = None) -> None:
        """close, detach and free in one."""
        self.close(pid, minor, patience)
        self.detach(pid, minor)
        self.free(minor)

    def stats(self, pid: int, minor: int) -> str:
        """JSON text."""
        with self._asked(pid, Message(wire.STATS, minor), ANSWER_PATIENCE) as client:
            answer = Message.unpack(self._receive(client))
            length = wire.stats_of(self._checked(pid, answer, wire.STATS_RSP))
            return self._receive(client, length).decode()

    # looking

    def entries(self, only: int | None = None) -> list[Entry]:
        """All minors and tapdisks (or one process), those without the other included."""
        found: list[Entry] = []
        for pid in [only] if only is not None else self._pids():
            try:
                entries = self._of(pid)
            except TapctlError:
                if only is not None:
                    raise
                continue  # it ended between our two looks, or left its socket behind
            found += entries or [Entry(pid)]
        if only is None:
            served = {entry.minor for entry in found}
            found += [Entry(minor=minor) for minor in self._minors() if minor not in served]
        return found

    def _of(self, pid: int) -> list[Entry]:
        entries: list[Entry] = []
        with self._asked(pid, Message(wire.LIST, wire.ALL), ANSWER_PATIENCE) as client:
            while True:
                answer = Message.unpack(self._receive(client))
                count, minor, state, args = wire.listed_of(
                    self._checked(pid, answer, wire.LIST_RSP)
                )
                if count == 0:
                    return entries
                entries.append(Entry(pid, minor, state, args))

    def _pids(self) -> list[int]:
        return _numbers(self.run_dir, r"ctl(\d+)")

    def _minors(self) -> list[int]:
        return _numbers(self.minors_dir, r"tapdisk-(\d+)")

    def wait_gone(self, pid: int, patience: float) -> bool:
        """Whether the process ended within `patience` seconds."""
        deadline = time.monotonic() + patience
        while (self.run_dir / f"ctl{pid}").exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _numbers(folder: Path, pattern: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))
