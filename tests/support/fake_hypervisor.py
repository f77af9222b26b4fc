"""A hypervisor without a virtual machine: its guests are threads that write to their shim.

What migrates is the state of the load. Everything else of a case is real: agents, shims, images,
and the record.
"""

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.driver import Disk, Hold, Outcome, Progress, Suspended, Watch
from vhdtool.nbd.client import NbdStorage
from vhdtool.oracle.evidence.schedule import SECTOR, Schedule
from vhdtool.storage.base import StorageError

PACE = 0.001


class Memory:
    """The guest's memory: its load, how many writes it has issued, and what it was told."""

    def __init__(self) -> None:
        self.load: Schedule | None = None
        self.stopped: Schedule | None = None
        self.count = 0
        self.commands: queue.SimpleQueue[str] = queue.SimpleQueue()


class FakeDriver:
    """`calls` has what was asked of the hypervisor, in order."""

    accelerator = "none"

    def __init__(self, hold: Hold = Hold.SWITCH, failing: str = "") -> None:
        self.hold = hold
        self.discards = True
        self.failing = failing
        """A method of the transfer that reports a failure after it has succeeded."""
        self.calls: list[str] = []

    def prepare(self, hosts: Sequence[Host], progress: Progress) -> None:
        progress(f"the fake hypervisor has {len(hosts)} hosts")

    def fingerprint(self, host: Host, disk_bytes: int) -> list[str]:
        return ["fake", str(disk_bytes)]

    def guest(self, host: Host, name: str, disk: Disk, watch: Watch) -> "FakeGuest":
        return FakeGuest(self, host, name, disk, watch)


class FakeGuest:
    devices = 1

    def __init__(self, driver: FakeDriver, host: Host, name: str, disk: Disk, watch: Watch) -> None:
        self.driver, self.host, self.disk, self.watch = driver, host, disk, watch
        self.log = f"{host.config.private_dir}/run/{name}.log"
        self.memory = Memory()
        self.running = False
        self._storage: NbdStorage | None = None
        self._thread: threading.Thread | None = None
        self.alive = False

    def call(self, name: str) -> None:
        self.driver.calls.append(f"{name} {self.host.name}")

    def boot(self) -> None:
        self.call("boot")
        self.alive = True
        self.watch.console(b"ready\n")

    def save(self, path: str) -> None:
        Path(path).write_text("memory")

    def run_from(self, path: str) -> None:
        assert Path(path).read_text() == "memory"
        self.go_on()

    def migrate_to(self, destination: "FakeGuest", port: int) -> "FakeTransfer":
        self.call("migrate from")
        destination.alive = True
        return FakeTransfer(self, destination)

    def send(self, line: str) -> None:
        self.memory.commands.put(line)

    def last_words(self) -> str:
        return "none"

    def kill(self) -> None:
        if self.alive:
            self.call("kill")
            self.suspend()
            self.alive = False

    def describe(self) -> dict[str, Any]:
        return {"id": 0, "qmp": "", "console": ""}

    # the guest itself

    def go_on(self) -> None:
        self.alive = self.running = True
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def suspend(self) -> None:
        """Returns when the request in flight is answered."""
        self.running = False
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._storage is not None:
            self._storage.close()
            self._storage = None

    def emit(self, text: str) -> None:
        self.watch.console(text.encode() + b"\n")

    def _work(self) -> None:
        while self.running:
            try:
                self._obey(self.memory.commands.get_nowait().split())
            except queue.Empty:
                if self.memory.load is not None:
                    self._write(self.memory.load)
            time.sleep(PACE)  # The load has a pace, as a guest's.

    def _write(self, load: Schedule) -> None:
        n = self.memory.count
        self.memory.count += 1
        if self._storage is None:
            assert self.disk.socket is not None
            self._storage = NbdStorage(Path(self.disk.socket), "disk")
        try:
            self._storage.pwrite(load.extent(n)[0] * SECTOR, load.content(n))
            self.emit(f"acked {n}")
        except StorageError as error:
            self.emit(f"error {n} {error.errno or 0}")

    def _obey(self, words: list[str]) -> None:
        if words[0] == "go":
            seed, _, block, reserved = map(int, words[1:5])
            self.memory.load = Schedule(seed, self.disk.size // SECTOR, block, reserved)
            self.emit(f"start {seed}")
        elif words[0] == "check":
            self.emit("deep checked 0 0")
        elif words[0] == "stop":
            self.memory.load, self.memory.stopped = None, self.memory.load
            if self._storage is not None:
                self._storage.flush()
            self.emit(f"stopped {self.memory.count}")
        elif words[0] == "readback":
            self._read_back()

    def _read_back(self) -> None:
        load, last = self.memory.stopped, dict[int, int]()
        assert load is not None
        assert self._storage is not None
        for n in range(self.memory.count):
            sector, length = load.extent(n)
            last.update(dict.fromkeys(range(sector, sector + length), n))
        bad = 0
        for sector, n in last.items():
            found = self._storage.pread(sector * SECTOR, SECTOR)
            bad += found != load.sector_content(n, sector)
        self.emit(f"readback done {len(last)} {bad}")


class FakeTransfer:
    def __init__(self, source: FakeGuest, destination: FakeGuest) -> None:
        self.source, self.destination = source, destination
        self.driver = source.driver

    def wait_suspended(self, timeout: float) -> Suspended:
        stopped = time.monotonic()
        self.source.suspend()
        self.destination.memory = self.source.memory
        if self.driver.hold is Hold.DESTINATION_DISK:
            self.destination.go_on()
        return Suspended(stopped)

    def resume(self, timeout: float) -> float:
        self.destination.call("resume")
        if self.driver.hold is Hold.SWITCH:
            self.destination.go_on()
        if self.driver.failing == "resume":
            raise LabError("the hypervisor exited with 1")
        return time.monotonic()

    def cancel(self, timeout: float) -> None:
        self.source.call("cancel")
        self.destination.suspend()
        if not self.source.running:
            self.source.go_on()

    def go_on_at_source(self, timeout: float) -> None:
        self.source.call("go on")
        assert not self.destination.alive
        self.source.go_on()

    def outcome(self) -> Outcome:
        return Outcome.of(self.source.running, self.destination.running)
