"""QEMU as a driver: a process on the host, driven over QMP; the runner holds the switch.

With pause-before-switchover QEMU stops the guest, drains and flushes its disk, sends the event
`pre-switchover` and waits for `migrate-continue`. The downtime limit is 60 ms or more: below that
TCG can corrupt the guest's memory (QEMU 7.2, measured; docs/strategies.md).
"""

import contextlib
import json
import signal
import time
from collections.abc import Sequence
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.accelerator import (
    PROBE_TIMEOUT,
    choose,
    refuse_emulation_inside_emulation,
)
from vhdtool.lab.hypervisors.driver import (
    BootConsole,
    Disk,
    Hold,
    Outcome,
    Progress,
    Suspended,
    Watch,
)
from vhdtool.lab.hypervisors.qemu_command import THROTTLED, Machine
from vhdtool.lab.hypervisors.qmp import Json, Loop, Monitor, UnknownCommand

DOWNTIME_LIMIT_MS = 100
BANDWIDTH = 1 << 30
SAVE_BANDWIDTH = 1 << 33
CAPABILITIES = ("events", "pause-before-switchover", "late-block-activate")
OVER = ("failed", "cancelled")
NOT_UNDER_WAY = (None, "none", "completed", *OVER)
TIMEOUT = 30.0
SAVE_TIMEOUT = 60.0
KILL_TIMEOUT = 5.0


class QemuDriver:
    """Guests with this kernel and initramfs; `accelerator`: auto, kvm or tcg."""

    hold = Hold.SWITCH
    discards = True

    def __init__(self, kernel: str, initrd: str, accelerator: str) -> None:
        self.accelerator = accelerator
        self._kernel, self._initrd = kernel, initrd
        self._loop = Loop()
        self._versions: dict[str, str] = {}

    def prepare(self, hosts: Sequence[Host], progress: Progress) -> None:
        facts = [host.call("facts", qemu=host.config.qemu) for host in hosts]
        self._versions = {host.name: f["qemu"] for host, f in zip(hosts, facts, strict=True)}
        if len(set(self._versions.values())) > 1:
            progress(f"the hosts differ: {' and '.join(self._versions.values())}")
        chosen = {
            choose(self.accelerator, host, fact, self._kernel, self._boots_on_kvm, progress)
            for host, fact in zip(hosts, facts, strict=True)
        }
        self.accelerator = "kvm" if chosen == {"kvm"} else "tcg"
        for host, fact in zip(hosts, facts, strict=True):
            refuse_emulation_inside_emulation(self.accelerator, host, fact)

    def fingerprint(self, host: Host, disk_bytes: int) -> list[str]:
        machine = self._machine(self.accelerator)
        files = [host.call("digest", path=path) for path in (self._kernel, self._initrd)]
        options = [*machine.board(), *machine.disks(Disk(disk_bytes))]
        return [self._versions[host.name], *files, json.dumps(options)]

    def guest(self, host: Host, name: str, disk: Disk, watch: Watch) -> "QemuGuest":
        return QemuGuest(self._machine(self.accelerator), self._loop, host, name, disk, watch)

    def _machine(self, accelerator: str) -> Machine:
        return Machine(self._kernel, self._initrd, accelerator)

    def _boots_on_kvm(self, host: Host) -> bool:
        console = BootConsole()
        disk, watch = Disk(1 << 20), Watch(console.take)
        guest = QemuGuest(self._machine("kvm"), self._loop, host, "kvm-probe", disk, watch)
        try:
            guest.boot()
            return console.wait(b"ready", PROBE_TIMEOUT, guest)
        except LabError:
            return False
        finally:
            guest.kill()


class QemuGuest:
    """One QEMU process."""

    devices = 1 + len(THROTTLED)

    def __init__(
        self, machine: Machine, loop: Loop, host: Host, name: str, disk: Disk, watch: Watch
    ) -> None:
        folder = f"{host.config.private_dir}/run"
        self.host = host
        self.log = f"{folder}/{name}.log"
        self.may_end = False
        """Whether its end is expected; else it is trouble."""
        self._qmp, self._console = f"{folder}/{name}.qmp", f"{folder}/{name}.console"
        self._argv = machine.argv(host.config.qemu, disk, self._qmp, self._console)
        self._loop = loop
        self._watch = watch
        self._pid: int | None = None
        self.monitor = Monitor(host, self._qmp, self.log, self._on_event)

    @property
    def alive(self) -> bool:
        return self._pid is not None and not self.monitor.ended

    def boot(self) -> None:
        # Output of the guest before a client connects to its console is lost.
        self._start("-S")
        self.monitor.execute("cont")

    def await_memory(self) -> None:
        """Start QEMU without running the guest, whose memory comes later."""
        self._start("-incoming", "defer", "-S")

    def _start(self, *extra: str) -> None:
        self._pid = int(self.host.call("spawn", argv=[*self._argv, *extra], log=self.log))
        self.host.on_exit[self._pid] = self._exited
        self.monitor.connect(self._loop)
        self._stream = self.host.connect(self._console, self._watch.console)

    def _exited(self, status: int) -> None:
        self.monitor.end()
        if not self.may_end:
            self._watch.trouble(f"QEMU on {self.host.name} ended by itself with status {status}")

    def _on_event(self, event: Json) -> None:
        where = f"QEMU on {self.host.name}"
        if event["event"] == "BLOCK_IO_ERROR":
            data = event.get("data", {})
            request = f"a {data.get('operation')} of the guest failed: {data.get('reason')}"
            self._watch.trouble(f"{where}: {request}")
        elif event["event"] == "SHUTDOWN" and not self.may_end:
            self._watch.trouble(f"{where}: the guest shut down or crashed")

    def set_capabilities(self, *names: str) -> None:
        wanted = [{"capability": name, "state": True} for name in names]
        self.monitor.execute("migrate-set-capabilities", capabilities=wanted)

    def save(self, path: str) -> None:
        self.monitor.execute("stop")
        self.set_capabilities("events")
        self.monitor.execute("migrate-set-parameters", **{"max-bandwidth": SAVE_BANDWIDTH})
        self.monitor.execute("migrate", uri=f"exec:cat > {path}")
        self.monitor.wait_migration("completed", SAVE_TIMEOUT)

    def run_from(self, path: str) -> None:
        self.await_memory()
        self.set_capabilities("events")
        self.monitor.execute("migrate-incoming", uri=f"exec:cat {path}")
        self.monitor.wait_migration("completed", TIMEOUT)
        self.monitor.execute("cont")

    def migrate_to(self, destination: "QemuGuest", port: int) -> "QemuTransfer":
        destination.await_memory()
        return QemuTransfer(self, destination, port)

    def send(self, line: str) -> None:
        self.host.send(self._stream, line.encode() + b"\n")

    def status(self) -> str:
        return str(self.monitor.execute("query-status")["status"])

    def queued(self) -> dict[str, int]:
        """Requests in flight of each throttled device; empty where QEMU has no such command."""
        found = {}
        for name, _, _ in THROTTLED:
            path = f"/machine/peripheral/{name}/virtio-backend"
            try:
                status = self.monitor.execute("x-query-virtio-queue-status", path=path, queue=0)
            except UnknownCommand:
                return {}
            found[name] = int(status["inuse"])
        return found

    def last_words(self) -> str:
        return self.host.last_line(self.log)

    def kill(self) -> None:
        """Kill QEMU with SIGKILL; the guest's memory is lost, nothing of its disk."""
        self.may_end = True
        if self.alive:
            self.host.call("kill", pid=self._pid, signal=int(signal.SIGKILL))
            self.monitor.wait_end(KILL_TIMEOUT)
        if self._pid is not None:
            self.host.call("remove", paths=[self._qmp, self._console])

    def describe(self) -> dict[str, Any]:
        return {"id": self._pid, "qmp": self._qmp, "console": self._console}


class QemuTransfer:
    """A migration between two QEMU processes over TCP, which waits at `pre-switchover`."""

    def __init__(self, source: QemuGuest, destination: QemuGuest, port: int) -> None:
        self._source, self._destination = source, destination
        for guest in (source, destination):
            guest.set_capabilities(*CAPABILITIES)
            limits = {"downtime-limit": DOWNTIME_LIMIT_MS, "max-bandwidth": BANDWIDTH}
            guest.monitor.execute("migrate-set-parameters", **limits)
        # Older events tell how the guest's memory came to the source.
        self._start = len(source.monitor.events)
        # On one address only: QEMU takes the first client for the source.
        uri = f"tcp:{destination.host.config.address}:{port}"
        destination.monitor.execute("migrate-incoming", uri=uri)
        source.monitor.execute("migrate", uri=uri)
        self._queued = source.queued()

    def wait_suspended(self, timeout: float) -> Suspended:
        monitor = self._source.monitor
        monitor.wait_migration("pre-switchover", timeout, self._start)
        stop = monitor.wait("STOP", 1, self._start)
        return Suspended(stop["mono"], self._queued)

    def resume(self, timeout: float) -> float:
        self._source.monitor.execute("migrate-continue", state="pre-switchover")
        completed = self._destination.monitor.wait_migration("completed", timeout)
        self._destination.monitor.execute("cont")
        return float(completed["mono"])

    def cancel(self, timeout: float) -> None:
        # The destination's QEMU ends by itself when it loses its peer.
        self._destination.may_end = True
        if self._status() not in NOT_UNDER_WAY:
            self._source.monitor.execute("migrate_cancel")
            self._source.monitor.wait_migration("cancelled", timeout, self._start)
        self._run_source(timeout)

    def go_on_at_source(self, timeout: float) -> None:
        # The source resumes by itself as soon as it notices that its peer is gone.
        with contextlib.suppress(LabError):
            self._source.monitor.execute("migrate-continue", state="pre-switchover")
        deadline = time.monotonic() + timeout
        while (status := self._status()) not in OVER:
            if time.monotonic() > deadline:
                raise LabError(f"{self._source.host.name}: the failed migration stays {status}")
            if status == "pre-switchover":
                self._source.monitor.execute("migrate_cancel")
            time.sleep(0.005)
        self._run_source(timeout)

    def outcome(self) -> Outcome:
        return Outcome.of(_runs(self._source), _runs(self._destination))

    def _status(self) -> str | None:
        found = self._source.monitor.execute("query-migrate").get("status")
        return None if found is None else str(found)

    def _run_source(self, timeout: float) -> None:
        """Wait until the guest runs at the source; resume it where QEMU does not."""
        deadline = time.monotonic() + timeout
        while (status := self._source.status()) != "running":
            if status in ("paused", "postmigrate"):
                self._source.monitor.execute("cont")
            if time.monotonic() > deadline:
                name = self._source.host.name
                raise LabError(f"{name}: the guest did not go on, it is {status}")
            time.sleep(0.005)


def _runs(guest: QemuGuest) -> bool:
    try:
        return guest.alive and guest.status() == "running"
    except LabError:
        return False
