"""One case: a writing guest migrates once or more in the order of a strategy, all on record.

Around the hypervisor's two points the steps of the strategy run one after the other. A step that
is refused cancels the migration, and the guest goes on at the source. Whatever happens, the case
directory is left complete enough for the oracles to say what it proves.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import ActivationRefused, LabError, LeaseLost, SplitBrain
from vhdtool.lab.case.held import AFTER, BEFORE, Holdings, after_leg
from vhdtool.lab.case.image_location import Medium
from vhdtool.lab.case.plan import CasePlan, Side
from vhdtool.lab.case.points import Points
from vhdtool.lab.case.record import Record
from vhdtool.lab.case.rollback import (
    AFTER_SWITCH,
    TIMEOUT,
    cancel,
    check_what_was_written_once,
    fail_and_recover,
)
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hosts.shim import Tap
from vhdtool.lab.hypervisors.qemu import Loop, Qemu, nbd_disk
from vhdtool.lab.strategies import Leg, Step

REFUSED = (ActivationRefused, LeaseLost, SplitBrain)
WARM_WRITES = 120
"""Acknowledged before the first migration begins: 60 blocks to lose."""
LAST_WRITES = 60
"""Acknowledged after those steps, before the guest is stopped."""
SECTOR = 512
Live = Callable[["CaseRun", str], None]


@dataclass
class CaseRun:
    """One execution of a plan."""

    plan: CasePlan
    record: Record
    source: Side
    destination: Side
    loop: Loop
    live: Live
    taps: list[Tap] = field(default_factory=list)
    qemus: list[Qemu] = field(default_factory=list)
    since: int = 0
    """How many events of the source's QEMU are older than this leg's migration."""
    queued: dict[str, int] = field(default_factory=dict)
    """What QEMU had in the queues of the deep half of the load in this leg."""
    consoles: dict[int, int] = field(default_factory=dict)
    """The console's stream of each QEMU, by pid."""
    looked: LabError | None = None
    """The first look at the hosts that failed. The case goes on: the oracles judge it first."""
    medium: Medium = field(init=False)
    """Where the image is; until it is made, where it will be."""
    points: Points = field(init=False)
    held: Holdings = field(init=False)

    def __post_init__(self) -> None:
        self.medium = Medium(self.plan)
        self.points = Points(self.record)
        self.held = Holdings(self.record, (self.source.host, self.destination.host))

    # the whole case

    def run(self) -> None:
        """Runs all legs. Raises LabError when the lab, not the hand-over, fails."""
        try:
            self._roles()
            for side in (self.source, self.destination):
                side.host.call("prepare", folder=f"{side.host.config.private_dir}/run")
            self._start_source()
            for number, leg in enumerate(self.plan.strategy.legs, start=1):
                self.record.leg = number
                if leg.back:
                    self.source, self.destination = self.destination, self.source
                self._roles()
                moved = self._leg(leg)
                self.held.look(self.medium, after_leg(number))
                if not moved:
                    break
            self._finish()
            if self.looked is not None:
                raise self.looked
        finally:
            self._end_all()

    def _roles(self) -> None:
        self.record.sides = {
            self.source.host.name: "source",
            self.destination.host.name: "destination",
        }

    def _start_source(self) -> None:
        plan, side = self.plan, self.source
        self.medium = Medium.make(plan, side.host, self.destination.host)
        self.held.look(self.medium, BEFORE)
        side.tap = self._tap(side)
        side.tap.do("attach", **self.medium.disk())
        side.tap.do("activate")
        qemu = self._qemu(side, "guest")
        qemu.enable_migration_events()
        qemu.execute("migrate-incoming", uri=f"exec:cat {plan.snapshot}")
        qemu.wait_migration("completed", timeout=TIMEOUT)
        qemu.execute("cont")
        block = plan.block_bytes // SECTOR
        numbers = (plan.seed, plan.pace_us, block, plan.deep_blocks, int(plan.frees))
        self.tell(side, " ".join(["go", *map(str, numbers)]))
        self.record.consoles.wait_acked(WARM_WRITES, TIMEOUT)

    def _tap(self, side: Side) -> Tap:
        name = f"disk{len(self.taps)}"
        tap = Tap(side.host, name, self.plan.guard, self.record.from_shim, self.medium.lease)
        tap.on_trouble = self.record.consoles.fail
        self.taps.append(tap)
        tap.connect()
        return tap

    def _qemu(self, side: Side, name: str) -> Qemu:
        qemu = Qemu(
            side.host,
            f"{name}{len(self.qemus)}",
            self.plan.machine,
            nbd_disk(side.shim().socket),
            "-incoming",
            "defer",
            "-S",
        )
        qemu.on_trouble = self.record.consoles.fail
        self.qemus.append(qemu)
        side.qemu = qemu
        qemu.connect(self.loop)
        follow = self.record.consoles.follow(side.host.name)
        self.consoles[qemu.pid] = side.host.connect(qemu.console, follow)
        return qemu

    def tell(self, side: Side, line: str) -> None:
        side.host.send(self.consoles[side.machine().pid], line.encode() + b"\n")

    def _look(self, phase: str) -> None:
        try:
            self.live(self, phase)
        except LabError as error:
            self.looked = self.looked or error

    # one migration

    def _leg(self, leg: Leg) -> bool:
        """True when the next leg may follow; False after a refusal."""
        record, source, destination = self.record, self.source, self.destination
        record.note("migrate-started", direction=f"{source.host.name}->{destination.host.name}")
        destination.tap = self._tap(destination)
        first = leg.before[:1]
        if first and first[0].operation == "attach":
            self.step(first[0])
        else:
            # libxl's order adds the disk while the guest is suspended; QEMU wants its socket now.
            first = ()
            destination.tap.do("export", size=self.plan.image_bytes)
        try:
            self._start_migration()
            for step in leg.before[len(first) :]:
                self.step(step)
            if (told := self.medium.keeps_out(destination.host)) is not None:
                record.note("kept-out", destination.host.name, reason=told)
            self._wait_suspended()
            self.points.take(self.medium, "source-quiesced", source)
            for step in leg.switch:
                self.step(step)
            if leg.fault:
                fail_and_recover(self, leg)
                return True
            destination.shim().do("may-serve")
        except REFUSED as refusal:
            cancel(self, str(refusal))
            return False
        self._resume()
        for step in leg.after:
            self.step(step)
        self._leave_source()
        return True

    def _start_migration(self) -> None:
        source, destination = self.source.machine(), self._qemu(self.destination, "incoming")
        for qemu in (source, destination):
            qemu.prepare_migration()
        # How the guest's memory came to this QEMU is history.
        self.since = len(source.events)
        # Not on every interface: whoever connects first is taken for the source.
        uri = f"tcp:{self.destination.host.config.address}:{self.plan.port}"
        destination.execute("migrate-incoming", uri=uri)
        source.execute("migrate", uri=uri)
        self.queued = source.queued()

    def _wait_suspended(self) -> None:
        source = self.source.machine()
        source.wait_migration("pre-switchover", timeout=TIMEOUT, start=self.since)
        stop = source.wait("STOP", 1, self.since)
        name = self.source.host.name
        self.record.note("suspended", name, stop_mono=stop["mono"], queued=self.queued)

    def _resume(self) -> None:
        source, destination = self.source.machine(), self.destination.machine()
        source.execute("migrate-continue", state="pre-switchover")
        completed = destination.wait_migration("completed", timeout=TIMEOUT)
        destination.execute("cont")
        self.record.note("resumed", self.destination.host.name, completed_mono=completed["mono"])
        acked = self.record.consoles.acked
        name, leg = self.destination.host.name, self.record.leg

        def wrote(event: dict[str, Any]) -> bool:
            what = (event["event"], event["host"], event["leg"])
            return what == ("allocated", name, leg)

        self.record.consoles.wait(
            "a block that the destination allocates", lambda: self.record.count(wrote) > 0, TIMEOUT
        )
        self.record.consoles.wait_acked(acked + AFTER_SWITCH, TIMEOUT)
        self.points.take(self.medium, "destination-wrote", self.destination)
        check_what_was_written_once(self, self.destination)
        self._look("live")

    def _leave_source(self) -> None:
        """The migration is over: the source's QEMU goes, and its shim with it."""
        self.record.note("migrated")
        self.source.machine().kill()
        self.source.shim().leave()
        self.source.tap, self.source.qemu = None, None

    # a step

    def step(self, step: Step) -> None:
        side = self.source if step.side == "S" else self.destination
        tap = side.shim()
        arguments: dict[str, Any] = {}
        if step.operation == "attach":
            arguments = self.medium.disk()
        elif step.operation == "open":
            arguments = {"mode": step.argument or "plain"}
        elif step.operation == "deactivate" and step.side == "S":
            # Until the migration is over its requests wait: it may have to go on.
            arguments = {"queue": True}
        tap.do(step.operation, **arguments)
        if step.operation == "deactivate" and step.side == "S":
            self.points.take(self.medium, "source-closed", side)
        if step.side == "D" and step.operation in ("open", "activate", "unpause"):
            self.points.take(self.medium, "destination-opened", side)

    # the end

    def _finish(self) -> None:
        """The guest stops and reads back, the last shim closes, the image is fetched."""
        consoles = self.record.consoles
        side = self.source if self.source.qemu is not None else self.destination
        consoles.wait_acked(consoles.acked + LAST_WRITES, TIMEOUT)
        self.tell(side, "stop")
        consoles.wait_line("stopped ", TIMEOUT)
        self.tell(side, "readback")
        consoles.wait_line("readback done", TIMEOUT)
        side.machine().kill()
        with contextlib.suppress(*REFUSED):
            side.shim().do("deactivate")
        side.shim().leave()
        side.tap = None
        self.points.take(self.medium, "all-closed", side)
        self.held.look(self.medium, AFTER)
        self._look("after")
        host = self.medium.host(side.host)
        host.fetch(self.plan.image, self.record.folder / f"image.{self.plan.kind}")
        if self.plan.kind == "qcow2":
            self.record.checked(host.call("check", path=self.plan.image))

    def _end_all(self) -> None:
        """Also after an error: no process stays, and the logs are brought home."""
        for qemu in self.qemus:
            with contextlib.suppress(LabError):
                qemu.kill()
        for tap in self.taps:
            with contextlib.suppress(LabError):
                tap.end()
        self.points.collect()
        self.medium.end(self._save)
        for n, qemu in enumerate(self.qemus):
            self._save(qemu.host, qemu.log, f"qemu-{qemu.host.name}-{n}.log")
        for n, tap in enumerate(self.taps):
            self._save(tap.host, tap.log, f"shim-{tap.host.name}-{n}.log")
            self._save(tap.host, tap.err, f"shim-{tap.host.name}-{n}.err")
        for side in (self.source, self.destination):
            with contextlib.suppress(LabError):
                side.host.call("remove", paths=[self.plan.image, self.plan.image + ".lease"])
        self.record.close()

    def _save(self, host: Host, path: str, name: str) -> None:
        """A log of the host into the record; an empty one is no file."""
        with contextlib.suppress(LabError, OSError):
            data = host.read(path)
            if data:
                (self.record.folder / name).write_bytes(data)
