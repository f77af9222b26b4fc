"""One case: a writing guest migrates once or more in the order of a strategy, all on record.

The steps of the strategy run one after the other, around SUSPENDED and RESUME. A step that is
refused cancels the migration, and the guest goes on at the source. Whatever happens, the case
directory is complete enough for the oracles to say what it proves.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from vhdtool.errors import ActivationRefused, LabError, LeaseLost, SplitBrain
from vhdtool.lab.case.image_location import ImageLocation
from vhdtool.lab.case.migration import TIMEOUT, Migration, Side
from vhdtool.lab.case.observations import AFTER, BEFORE, Observations, after_leg
from vhdtool.lab.case.plan import CasePlan
from vhdtool.lab.case.record import Record
from vhdtool.lab.case.rollback import cancel, fail_and_recover
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hosts.shim import Shim
from vhdtool.lab.hosts.vdi_shim import VdiShim
from vhdtool.lab.hypervisors.driver import Disk, Driver, Hold, Watch
from vhdtool.lab.strategies import Leg

REFUSED = (ActivationRefused, LeaseLost, SplitBrain)
WARM_WRITES = 120
"""Writes acknowledged before the first migration begins: 60 blocks to lose."""
LAST_WRITES = 60
"""Writes acknowledged after the last leg, before the guest is stopped."""
END_TIMEOUT = 5.0
LiveChecks = Callable[["CaseRun", str], None]


@dataclass
class CaseRun:
    """One execution of a plan. `hosts`: the source and the destination of the first leg."""

    plan: CasePlan
    record: Record
    hosts: tuple[Host, Host]
    driver: Driver
    live_checks: LiveChecks
    sides: list[Side] = field(default_factory=list)
    """In the order in which they were made; the guest of a later one may come from an earlier."""
    failed_check: LabError | None = None
    """The first live check that failed. The case goes on: the oracles judge it first."""
    image: ImageLocation = field(init=False)
    observations: Observations = field(init=False)

    def __post_init__(self) -> None:
        self.image = ImageLocation(self.plan)
        self.observations = Observations(self.record, self.image, self.hosts)

    def run(self) -> None:
        """Run all legs. Raises LabError when the lab, not the hand-over, fails."""
        try:
            self.record.assign_roles(*self.hosts)
            for host in self.hosts:
                host.call("prepare", folder=f"{host.config.private_dir}/run")
            side = self._start_guest()
            for number, leg in enumerate(self.plan.strategy.legs, start=1):
                self.record.leg = number
                if leg.back:
                    self.hosts = self.hosts[1], self.hosts[0]
                self.record.assign_roles(*self.hosts)
                side, refused = self._migrate(leg, side)
                self.observations.record_holdings(after_leg(number))
                if refused:
                    break
            self._finish(side)
            if self.failed_check is not None:
                raise self.failed_check
        finally:
            self._end_all()

    def _start_guest(self) -> Side:
        plan, consoles = self.plan, self.record.consoles
        self.image.create(*self.hosts)
        self.observations.record_holdings(BEFORE)
        side = self._make_side(self.hosts[0], "guest")
        side.shim.call("attach", **self.image.attach_arguments())
        side.shim.call("activate")
        side.guest.run_from(plan.memory_state)
        self.record.load.start(side.guest, plan)
        consoles.wait_acked(WARM_WRITES, TIMEOUT)
        return side

    def _make_side(self, host: Host, name: str) -> Side:
        """A shim that is ready, and a guest that does not run yet."""
        number, consoles = len(self.sides), self.record.consoles
        lease = self.image.lease
        kind = VdiShim if self.plan.strategy.vdi else Shim
        shim = kind(host, f"disk{number}", self.plan.guard, self.record.from_shim, lease)
        shim.on_trouble = consoles.fail
        disk = Disk(self.plan.image_bytes, shim.socket)
        watch = Watch(consoles.follow(host.name), consoles.fail)
        side = Side(host, shim, self.driver.guest(host, f"{name}{number}", disk, watch))
        self.sides.append(side)
        shim.connect()
        return side

    def _migrate(self, leg: Leg, source: Side) -> tuple[Side, bool]:
        """(side where the guest runs after the leg, whether the hand-over was refused)."""
        direction = "->".join(host.name for host in self.hosts)
        self.record.note("migrate-started", direction=direction)
        destination = self._make_side(self.hosts[1], "incoming")
        migration = Migration(leg, source, destination, self.image, self.record, self.observations)
        migration.attach()
        try:
            migration.begin()
            if self.driver.hold is Hold.DESTINATION_DISK and not leg.switch:
                # Nothing makes the guest at the destination wait for a refusal after SUSPENDED.
                destination.shim.call("may-serve")
            migration.switch()
            if leg.fault:
                fail_and_recover(migration)
                return source, False
            destination.shim.call("may-serve")
        except REFUSED as refusal:
            cancel(migration, str(refusal))
            return source, True
        migration.resume()
        self._check_live("live")
        migration.finish()
        return destination, False

    def _check_live(self, phase: str) -> None:
        try:
            self.live_checks(self, phase)
        except LabError as error:
            self.failed_check = self.failed_check or error

    def _finish(self, side: Side) -> None:
        """The guest stops and reads back, the last shim closes, the image is fetched."""
        load = self.record.load
        load.wait_more(LAST_WRITES, TIMEOUT)
        load.stop_and_read_back(side.guest)
        side.guest.kill()
        with contextlib.suppress(*REFUSED):
            side.shim.call("deactivate")
        side.shim.detach()
        self.observations.take_snapshot("all-closed", side.host)
        self.observations.record_holdings(AFTER)
        self._check_live("after")
        host = self.image.direct_host(side.host)
        host.fetch(self.plan.image, self.record.folder / f"image.{self.plan.kind}")
        if self.plan.kind == "qcow2":
            self.record.write_check(host.call("check", path=self.plan.image))

    def _end_all(self) -> None:
        """End every process, also after an error, and copy the logs into the record."""
        for side in self.sides:
            with contextlib.suppress(LabError):
                side.guest.kill()
        ending = []
        for side in self.sides:
            with contextlib.suppress(LabError):
                side.shim.terminate()
                ending.append(side.shim)
        # A shim that still closes its image would take the removal of its lease for a split brain.
        for shim in ending:
            with contextlib.suppress(LabError):
                shim.wait_end(END_TIMEOUT)
        self.observations.collect_snapshots()
        self.image.close(self._save)
        for n, side in enumerate(self.sides):
            name = f"{side.host.name}-{n}"
            self._save(side.host, side.guest.log, f"qemu-{name}.log")
            self._save(side.host, side.shim.log, f"shim-{name}.log")
            self._save(side.host, side.shim.err, f"shim-{name}.err")
        for host in self.hosts:
            with contextlib.suppress(LabError):
                beside = [self.plan.image + suffix for suffix in (".lease", ".keys")]
                host.call("remove", paths=[self.plan.image, *beside])
        self.record.close()

    def _save(self, host: Host, path: str, name: str) -> None:
        """Copy a log of the host into the record, unless it is empty."""
        with contextlib.suppress(LabError, OSError):
            data = host.read(path)
            if data:
                (self.record.folder / name).write_bytes(data)
