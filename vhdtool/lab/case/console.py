"""The guest's serial console on both hosts, stamped by one process as the bytes arrive."""

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
READBACK_TIMEOUT = 30.0
OOPS = re.compile(rb"Oops|BUG:|Kernel panic|general protection|Call Trace")

DEEP = re.compile(r"deep( \d+:\d+)+")
"""Acknowledgements of the deep half of the load."""


class Consoles:
    """Writes `console-<host>.log` and `console.jsonl`, and follows the guest's lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logs: dict[str, IO[bytes]] = {}
        self._offsets: dict[str, int] = {}
        self._index = open(folder / "console.jsonl", "w")  # noqa: SIM115
        self._changed = threading.Condition()
        self._rest = b""
        self.acked = 0
        """Number of acknowledgements seen."""
        self.said: list[str] = []
        """Every other line of the guest."""
        self.trouble: str | None = None
        self._closed = False

    def follow(self, host: str) -> Callable[[bytes], None]:
        """The function that takes the bytes of this host's console."""
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
            # One line may begin on one host and end on the other.
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").strip()
                if text.startswith("acked "):
                    self.acked += 1
                elif DEEP.fullmatch(text):
                    continue
                elif text:
                    self.said.append(text)
                    if OOPS.search(line):
                        self.trouble = f"the guest's kernel is in trouble: {text}"
            self._changed.notify_all()

    def wait(self, what: str, condition: Callable[[], bool], timeout: float) -> None:
        """Until the condition holds. Raises LabError on a timeout or when the guest is broken."""
        with self._changed:
            met = self._changed.wait_for(lambda: self.trouble or condition(), timeout)
        if self.trouble:
            raise LabError(self.trouble)
        if not met:
            last = self.said[-1] if self.said else "nothing"
            raise LabError(
                f"the guest did not reach {what} within {timeout:.0f} s "
                f"({self.acked} writes acknowledged, last line: {last})"
            )

    def wait_line(self, start: str, timeout: float) -> str:
        """The first line that begins with `start`."""

        def found() -> str | None:
            return next((line for line in self.said if line.startswith(start)), None)

        self.wait(f"a line `{start}`", lambda: found() is not None, timeout)
        line = found()
        assert line is not None
        return line

    def count(self, start: str) -> int:
        """How many lines began with `start` so far."""
        return sum(line.startswith(start) for line in self.said)

    def wait_acked(self, count: int, timeout: float) -> None:
        self.wait(f"{count} acknowledged writes", lambda: self.acked >= count, timeout)

    def fail(self, why: str) -> None:
        """Whoever waits for the guest learns that it cannot go on."""
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
        """Makes the load write until it is stopped."""
        block = plan.block_bytes // SECTOR
        numbers = (plan.seed, plan.pace_us, block, plan.deep_blocks, int(plan.frees))
        guest.send(" ".join(["go", *map(str, numbers)]))

    def wait_more(self, writes: int, timeout: float) -> None:
        """Waits until so many more writes are acknowledged."""
        self._consoles.wait_acked(self._consoles.acked + writes, timeout)

    def check(self, guest: Guest) -> None:
        """Makes the guest read all that it wrote only once, while it goes on writing."""
        before = self._consoles.count("deep checked ")
        guest.send("check")
        self._consoles.wait(
            "the check of what was written once",
            lambda: self._consoles.count("deep checked ") > before,
            READBACK_TIMEOUT,
        )

    def stop_and_read_back(self, guest: Guest) -> None:
        """Ends the writing, and makes the guest compare the disk with what it wrote."""
        guest.send("stop")
        self._consoles.wait_line("stopped ", READBACK_TIMEOUT)
        guest.send("readback")
        self._consoles.wait_line("readback done", READBACK_TIMEOUT)
