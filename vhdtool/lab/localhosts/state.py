"""The state directory of a lab (.lab in the checkout): its hosts, and the run that uses them.

supervisor.json  {"pid", "start", "network", "options"}: the outer process of the running hosts
holder.json      {"pid", "start", "mark"}: the run that is using them
The directory itself is the lock (flock on its descriptor), so no lock file has to be removed.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.localhosts.processes import Process

MARK = "VHDLAB_RUN"
"""Environment variable that every process of a run inherits; its value is the run's mark."""

# The record of the processes is removed last, so that an interrupted removal can be repeated.
_FILES = (
    "id_ed25519*",
    "host_*",
    "authorized_keys",
    "known_hosts*",
    "sshd_config-*",
    "sshd-*.log",
    "hosts.log",
    "ssh_config*",
    "holder.json*",
    "*.qcow2",
    "*.tar",
    "*.console",
    "*.qmp",
    "qemu-*.log",
    "supervisor.json*",
)


@dataclass(frozen=True)
class Holder:
    """The run that uses the lab now, and the mark in its processes' environment."""

    process: Process
    mark: str


class State:
    """Reads and writes the files of one state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def path(self, name: str) -> Path:
        return self.directory / name

    @contextlib.contextmanager
    def locked(self, seconds: float = 20.0) -> Iterator[int]:
        """Hold the lock of this lab; yield its descriptor. Raises LabError after `seconds`."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(
                f"{self.directory}: the files of the hosts cannot be made there "
                f"({error.strerror}); choose another directory"
            ) from None
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + seconds
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LabError(
                            f"{self.directory}: another command is starting or ending the hosts "
                            f"of this checkout for {seconds:.0f} s already; try again"
                        ) from None
                    time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Replace a file in one step: a reader sees the old one or the new one."""
        fresh = self.path(name + ".new")
        fresh.write_text(json.dumps(value, indent=1) + "\n")
        fresh.replace(self.path(name))

    @staticmethod
    def _process(record: dict[str, Any] | None) -> Process | None:
        try:
            return Process(int(record["pid"]), int(record["start"])) if record else None
        except (KeyError, TypeError, ValueError):
            return None

    def supervisor(self) -> tuple[Process | None, dict[str, Any]]:
        """The recorded outer process, dead or alive, and its whole record."""
        record = self._read("supervisor.json")
        return self._process(record), record or {}

    def holder(self) -> Holder | None:
        """The recorded holder, dead or alive."""
        record = self._read("holder.json")
        process = self._process(record)
        if process is None or record is None:
            return None
        return Holder(process, str(record.get("mark", "")))

    def claim(self, process: Process, mark: str) -> None:
        """Make `process` the holder. Raises LabError while another live run is the holder."""
        other = self.holder()
        if other is not None and other.process != process and other.process.alive():
            raise LabError(
                f"another run (pid {other.process.pid}) is using the lab of this checkout; "
                "wait for its end or stop it"
            )
        self.write("holder.json", {"pid": process.pid, "start": process.start, "mark": mark})

    def clear(self, forget_holder: bool) -> None:
        """Remove the files of the lab; the directory stays, because it is the lock."""
        spared = "" if forget_holder else "holder.json"
        for pattern in _FILES:
            for entry in self.directory.glob(pattern):
                if entry.name != spared:
                    entry.unlink(missing_ok=True)
