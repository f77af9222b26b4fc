"""QEMU on a lab host: started by the agent, driven over QMP, with the flags that migrate.

Facts (QEMU 7.2, measured; docs/strategies.md): `thread=single` and a downtime limit of 60 ms or
more, because TCG can otherwise corrupt the guest's memory; with `cyls/heads/secs` given QEMU sends
no request to a disk that it attaches; `reconnect-delay` hides a shim that restarts.
"""

import asyncio
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host

QMP_TIMEOUT = 20.0
DOWNTIME_LIMIT_MS = 100
BANDWIDTH = 1 << 30
MEMORY_MIB = 192
CAPABILITIES = ("events", "pause-before-switchover", "late-block-activate")
OVER = ("failed", "cancelled")
QUEUES = (("deep1", 60, "write-cache=on"), ("deep2", 20, "write-cache=off"))
"""Name, requests a second, and caching of the devices that the deep half of the load uses: some
600 ms for each request, so that a guest that gets little of a busy machine keeps them full. What a
guest writes through the second one has FUA."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """What source and destination must have in common for a migration."""

    kernel: str
    initrd: str
    accelerator: str

    def board(self) -> list[str]:
        """The options that the state of a running guest depends on."""
        accel = "kvm" if self.accelerator == "kvm" else "tcg,thread=single"
        return ["-M", "q35", "-accel", accel, "-cpu", "qemu64", "-m", str(MEMORY_MIB), "-smp", "1"]

    def argv(self, qemu: str, disk: str, folder: str, name: str) -> list[str]:
        """The command line; `disk` is what `-blockdev` says of the disk, less its name."""
        # Pace and blackout are measured: what else the machine does shall not count.
        line = ["nice", "-n", "-10", qemu, *self.board(), "-nodefaults", "-no-user-config"]
        line += ["-display", "none", "-no-reboot", "-kernel", self.kernel, "-initrd", self.initrd]
        line += ["-append", "console=ttyS0 quiet panic=1", *self.disks(disk)]
        for kind in ("qmp", "console"):
            path = f"{folder}/{name}.{kind}"
            line += ["-chardev", f"socket,id={kind},path={path},server=on,wait=off"]
        return [*line, "-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]

    def disks(self, disk: str) -> list[str]:
        """The disk by three devices: one as it is, and two whose requests are held up.

        However fast a shim answers, the two have requests in flight at any moment, and so when
        the guest is stopped; QEMU lets all of them go then.
        """
        device = "virtio-blk-pci,share-rw=on,werror=stop,rerror=stop,cyls=1024,heads=16,secs=63"
        line = ["-blockdev", f"{disk},node-name=disk", "-device", f"{device},drive=disk"]
        for name, iops, caching in QUEUES:
            line += ["-object", f"throttle-group,id=pace-{name},x-iops-total={iops}"]
            line += ["-blockdev", f"{disk},node-name=at-{name},discard=unmap"]
            held = f"throttle,node-name={name},file=at-{name},throttle-group=pace-{name}"
            line += ["-blockdev", f"driver={held},discard=unmap"]
            line += ["-device", f"{device},drive={name},id={name},{caching}"]
        return line


class UnknownCommand(LabError):
    """This QEMU has no such QMP command."""


class Loop:
    """One asyncio loop in a thread: the QMP library is asynchronous, the runner is not."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="qmp", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = QMP_TIMEOUT) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)


class Qemu:
    """One QEMU process. `events` are kept in order; `wait` looks for one of them."""

    def __init__(self, host: Host, name: str, machine: Machine, disk: str, *extra: str) -> None:
        folder = f"{host.config.private_dir}/run"
        self.host = host
        self.name = name
        self.log = f"{folder}/{name}.log"
        self.qmp = f"{folder}/{name}.qmp"
        self.console = f"{folder}/{name}.console"
        self.events: list[Json] = []
        self.died: int | None = None
        self.may_end = False
        """Whether its end is part of the plan; else `on_trouble` is told of it."""
        self.on_trouble: Callable[[str], None] = lambda why: None
        self._changed = threading.Condition()
        argv = machine.argv(host.config.qemu, disk, folder, name) + list(extra)
        self.pid = int(host.call("spawn", argv=argv, log=self.log))
        host.on_exit[self.pid] = self._exited

    def connect(self, loop: Loop) -> None:
        """Opens QMP. Raises LabError with QEMU's own words when it did not start."""
        self._loop = loop
        here, there = socket.socketpair()
        self._out: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        try:
            self._stream = self.host.connect(self.qmp, self._from_host)
        except LabError as error:
            raise LabError(f"{self.host.name}: QEMU did not start: {self.last_words()}") from error
        self._there = there
        threading.Thread(target=self._to_qmp, daemon=True).start()
        threading.Thread(target=self._from_qmp, daemon=True).start()
        self._client = QMPClient(self.name)
        # An event that came before its listener would be lost.
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        here.setblocking(False)
        try:
            loop.run(self._client.connect(here))
        except (QMPError, TimeoutError) as error:
            raise LabError(f"{self.host.name}: no QMP: {error}; {self.last_words()}") from error
        asyncio.run_coroutine_threadsafe(self._follow(), loop.loop)

    def _from_host(self, data: bytes) -> None:
        self._out.put(data)

    def _to_qmp(self) -> None:
        """Apart from the host's reader, which must never wait for a full socket."""
        while data := self._out.get():
            try:
                self._there.sendall(data)
            except OSError:
                break
        self._there.close()

    def _from_qmp(self) -> None:
        try:
            while data := self._there.recv(1 << 16):
                self.host.send(self._stream, data)
        except (OSError, LabError):
            return

    async def _follow(self) -> None:
        async for event in self._listener:
            with self._changed:
                self.events.append({**event, "mono": time.monotonic()})
                self._changed.notify_all()
            if event["event"] == "BLOCK_IO_ERROR":
                self.on_trouble(f"QEMU on {self.host.name}: {describe_io_error(event)}")
            elif event["event"] == "SHUTDOWN" and not self.may_end:
                self.on_trouble(f"QEMU on {self.host.name}: the guest shut down or crashed")

    def _exited(self, status: int) -> None:
        with self._changed:
            self.died = status
            self._changed.notify_all()
        if not self.may_end:
            self.on_trouble(f"QEMU on {self.host.name} ended by itself with status {status}")

    def execute(self, command: str, **arguments: Any) -> Any:
        """One QMP command. Raises LabError with QEMU's own words."""
        try:
            return self._loop.run(self._client.execute(command, arguments or None))
        except ExecuteError as error:
            kind = UnknownCommand if error.error_class == "CommandNotFound" else LabError
            raise kind(f"{self.host.name}: QMP {command}: {error}") from error
        except (QMPError, TimeoutError) as error:
            what = error or type(error).__name__
            raise LabError(
                f"{self.host.name}: QMP {command}: {what}; {self.last_words()}"
            ) from error

    def wait(self, name: str, timeout: float, start: int = 0, **data: str) -> Json:
        """The first event `name` with that data at or after index `start`."""

        def found() -> Json | None:
            for event in self.events[start:]:
                has = event.get("data", {})
                if event["event"] == name and all(has.get(k) == v for k, v in data.items()):
                    return event
            return None

        with self._changed:
            self._changed.wait_for(lambda: found() or self.died is not None, timeout)
            event = found()
        if event is None:
            why = "QEMU is dead" if self.died is not None else f"not within {timeout:.0f} s"
            wanted = " ".join([name, *data.values()])
            raise LabError(f"{self.host.name}: no {wanted}: {why}; {self.last_words()}")
        return event

    def wait_migration(self, *states: str, timeout: float, start: int = 0) -> Json:
        """The first MIGRATION event with one of these states, or `failed` as an error."""

        def found() -> Json | None:
            for event in self.events[start:]:
                if event["event"] == "MIGRATION" and event["data"]["status"] in (*states, "failed"):
                    return event
            return None

        with self._changed:
            self._changed.wait_for(lambda: found() or self.died is not None, timeout)
            event = found()
        if event is None or event["data"]["status"] not in states:
            state = "died" if self.died is not None else "failed" if event else "hangs"
            raise LabError(
                f"{self.host.name}: migration {state} (wanted {'/'.join(states)}); "
                f"{self.last_words()}"
            )
        return event

    def enable_migration_events(self) -> None:
        self._capabilities("events")

    def _capabilities(self, *names: str) -> None:
        wanted = [{"capability": name, "state": True} for name in names]
        self.execute("migrate-set-capabilities", capabilities=wanted)

    def prepare_migration(self) -> None:
        """Capabilities and limits, the same on both sides."""
        self._capabilities(*CAPABILITIES)
        limits = {"downtime-limit": DOWNTIME_LIMIT_MS, "max-bandwidth": BANDWIDTH}
        self.execute("migrate-set-parameters", **limits)

    def wait_migration_over(self, timeout: float) -> None:
        """Until a migration from here that lost its peer has given up."""
        deadline = time.monotonic() + timeout
        while (status := self.execute("query-migrate").get("status")) not in OVER:
            if time.monotonic() > deadline:
                raise LabError(f"{self.host.name}: the failed migration stays {status}")
            if status == "pre-switchover":
                self.execute("migrate_cancel")
            time.sleep(0.005)

    def run_again(self, timeout: float) -> None:
        """The guest runs here; QEMU resumes it by itself, or is told to."""
        deadline = time.monotonic() + timeout
        while (status := self.execute("query-status")["status"]) != "running":
            if status in ("paused", "postmigrate"):
                self.execute("cont")
            if time.monotonic() > deadline:
                raise LabError(f"{self.host.name}: the guest did not go on, it is {status}")
            time.sleep(0.005)

    def queued(self) -> dict[str, int]:
        """Requests that each device of the deep half has in flight; empty where QEMU cannot say.

        Raises LabError when QEMU is gone.
        """
        found = {}
        for name, _, _ in QUEUES:
            path = f"/machine/peripheral/{name}/virtio-backend"
            try:
                status = self.execute("x-query-virtio-queue-status", path=path, queue=0)
            except UnknownCommand:
                return {}
            found[name] = int(status["inuse"])
        return found

    def last_words(self) -> str:
        """The last line of QEMU's log."""
        try:
            lines = self.host.read(self.log, 4096).decode(errors="replace").strip().splitlines()
        except LabError:
            lines = []
        return lines[-1] if lines else "its log is empty"

    def kill(self) -> None:
        """KILL: what is lost with it is in the guest's memory, and the guest has been stopped."""
        self.may_end = True
        if self.died is None:
            self.host.call("kill", pid=self.pid, signal=int(signal.SIGKILL))
            with self._changed:
                self._changed.wait_for(lambda: self.died is not None, 5)
        self.host.call("remove", paths=[self.qmp, self.console])


def describe_io_error(event: Mapping[str, Any]) -> str:
    """A BLOCK_IO_ERROR event in words: the guest's request failed at the shim."""
    data = event.get("data", {})
    return f"a {data.get('operation')} of the guest failed: {data.get('reason')}"


def nbd_disk(path: str) -> str:
    """`-blockdev` for a disk behind a shim's Unix socket."""
    return f"driver=nbd,server.type=unix,server.path={path},cache.direct=on,reconnect-delay=10"


def blank_disk(size: int) -> str:
    """`-blockdev` for a disk of zeros: the guest boots on it once, for the snapshot."""
    return f"driver=null-co,size={size},read-zeroes=on"
