"""The guest's serial console on both hosts: a log with arrival times, and the load's lines."""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vhdtool.errors import LabError
from vhdtool.lab.case.plan import CasePlan
from vhdtool.lab.hypervisors.driver import Guest

SECTOR = 512
READBACK_TIMEOUT = 60.0
OOPS = re.compile(rb"Oops|BUG:|Kernel panic|general protection|Call Trace")

DEEP = re.compile(r"deep( \d+:\d+)+")
"""Acknowledgements of the deep half of the load."""


class Consoles:
    """Writer of `console-<host>.log` and `console.jsonl`; reader of the guest's lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logs: dict[str, IO[bytes]] = {}
        self._offsets: dict[str, int] = {}
        self._index = open(folder / "console.jsonl", "w")  # noqa: SIM115
        self._changed = threading.Condition()
        self._rest = b""
        self.acked = 0
        """Number of acknowledgements seen."""
        self.lines: list[str] = []
        """All other lines of the guest."""
        self.trouble: str | None = None
        """Why the guest cannot go on."""
        self._closed = False

    def follow(self, host: str) -> Callable[[bytes], None]:
        """A function that takes bytes of this host's console; b"" is ignored."""
        with self._changed:
            if host not in self._logs:
                self._logs[host] = open(self.folder / f"console-{host}.log", "wb")  # noqa: SIM115
                self._offsets[host] = 0

        def take(data: bytes) -> None:
            mono = time.monotonic()
            if data:
                self._arrived(host, data, mono)

        return take

    def _arrived(self, host: str, data: bytes, mono: float) -> None:
        with self._changed:
            if self._closed:
                return
            entry = {"host": host, "offset": self._offsets[host], "mono": mono}
            self._index.write(json.dumps(entry) + "\n")
            self._logs[host].write(data)
            self._offsets[host] += len(data)
            # A line may begin on one host and end on the other.
            *ended, self._rest = (self._rest + data).split(b"\n")
            for line in ended:
                text = line.decode(errors="replace").strip()
                if text.startswith("acked "):
                    self.acked += 1
                elif DEEP.fullmatch(text):
                    continue
                elif text:
                    self.lines.append(text)
                    if OOPS.search(line):
                        self.trouble = f"the guest's kernel is in trouble: {text}"
            self._changed.notify_all()

    def wait(self, what: str, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until the condition holds. Raises LabError on a timeout or on `trouble`."""
        with self._changed:
            met = self._changed.wait_for(lambda: self.trouble or condition(), timeout)
        if self.trouble:
            raise LabError(self.trouble)
        if not met:
            last = self.lines[-1] if self.lines else "nothing"
            raise LabError(
                f"the guest did not reach {what} within {timeout:.0f} s "
                f"({self.acked} writes acknowledged, last line: {last})"
            )

    def wait_line(self, start: str, timeout: float) -> str:
        """Wait for a line that begins with `start`; the first one."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(start)), None)

        self.wait(f"a line `{start}`", lambda: found() is not None, timeout)
        line = found()
        assert line is not None
        return line

    def count(self, start: str) -> int:
        """The number of lines so far that begin with `start`."""
        return sum(line.startswith(start) for line in self.lines)

    def wait_acked(self, count: int, timeout: float) -> None:
        self.wait(f"{count} acknowledged writes", lambda: self.acked >= count, timeout)

    def fail(self, why: str) -> None:
        """Set `trouble`, which ends every wait with that error."""
        with self._changed:
            self.trouble = self.trouble or why
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for log in self._logs.values():
                log.close()
            self._index.close()


class LoadControl:
    """Commands to the load in the guest, and its answers; see guest/load.py."""

    def __init__(self, consoles: Consoles) -> None:
        self._consoles = consoles

    def start(self, guest: Guest, plan: CasePlan) -> None:
        """Make the load write until it is stopped."""
        block = plan.block_bytes // SECTOR
        numbers = (plan.seed, plan.pace_us, block, plan.deep_blocks, int(plan.frees))
        guest.send(" ".join(["go", *map(str, numbers)]))

    def wait_more(self, writes: int, timeout: float) -> None:
        """Wait until so many more writes are acknowledged."""
        self._consoles.wait_acked(self._consoles.acked + writes, timeout)

    def check(self, guest: Guest) -> None:
        """Make the guest check all write-once sectors, while it goes on writing."""
        before = self._consoles.count("deep checked ")
        guest.send("check")
        self._consoles.wait(
            "the check of the write-once sectors",
            lambda: self._consoles.count("deep checked ") > before,
            READBACK_TIMEOUT,
        )

    def stop_and_read_back(self, guest: Guest) -> None:
        """End the writing, and make the guest compare the disk with what it wrote."""
        guest.send("stop")
        self._consoles.wait_line("stopped ", READBACK_TIMEOUT)
        guest.send("readback")
        self._consoles.wait_line("readback done", READBACK_TIMEOUT)
