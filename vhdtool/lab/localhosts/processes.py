"""Processes by pid and start time: a pid alone may have been recycled."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import LabError
from vhdtool.machine import process_start, stat_fields


@dataclass(frozen=True)
class Process:
    """One process; `start` is its start time in clock ticks since boot (proc(5), field 22)."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has `pid` now; None when there is none. A zombie does not count."""
        with contextlib.suppress(OSError):
            start = process_start(pid)
            return None if start is None else cls(pid, start)
        return None

    @classmethod
    def current(cls) -> "Process":
        found = cls.of(os.getpid())
        assert found is not None
        return found

    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal the process if it is still the same one."""
        if not self.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent(pid: int) -> int:
    """The parent's pid; 0 when there is no such process."""
    with contextlib.suppress(OSError):
        fields = stat_fields(pid)
        return 0 if fields is None else int(fields[1])
    return 0


def descendants(root: int) -> list[Process]:
    """All processes below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        children.setdefault(parent(pid), []).append(pid)
    found: list[Process] = []
    queue = list(children.get(root, ()))
    while queue:
        pid = queue.pop(0)
        queue.extend(children.get(pid, ()))
        process = Process.of(pid)
        if process is not None:
            found.append(process)
    return found


def ancestors(pid: int) -> set[int]:
    """`pid` and every process above it."""
    line: set[int] = set()
    while pid > 0 and pid not in line:
        line.add(pid)
        pid = parent(pid)
    return line


def marked(mark: str) -> list[Process]:
    """Processes started with the string `mark` ("NAME=value") in their environment."""
    wanted = os.fsencode(mark)
    found: list[Process] = []
    for pid in pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        process = Process.of(pid) if wanted in environment.split(b"\0") else None
        if process is not None:
            found.append(process)
    return found


def in_network(inode: int) -> list[Process]:
    """Processes whose network namespace has this inode number."""
    found: list[Process] = []
    for pid in pids():
        process = Process.of(pid) if network_of(pid) == inode else None
        if process is not None:
            found.append(process)
    return found


def network_of(pid: int) -> int | None:
    """The inode of a process's network namespace; None when the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def command_line(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def wait_gone(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait until all are gone; return those that are still there after `seconds`."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if process.alive()]
    while left and time.monotonic() < deadline:
        time.sleep(0.005)
        left = [process for process in left if process.alive()]
    return left


def end_marked(mark: str) -> None:
    """End all processes with `mark` in their environment, and those that they start meanwhile."""
    spared = ancestors(os.getpid())
    for _ in range(20):
        found = [process for process in marked(mark) if process.pid not in spared]
        if not found:
            return
        end(found)


def end(processes: list[Process]) -> None:
    """Kill processes in order, and wait for their end. Raises LabError when one stays."""
    for process in processes:
        process.kill()
    left = wait_gone(processes, 10.0)
    if left:
        names = ", ".join(f"{p.pid} ({command_line(p.pid)[:60]})" for p in left)
        raise LabError(f"these processes of the lab do not end: {names}")
