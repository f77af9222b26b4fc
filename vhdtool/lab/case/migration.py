"""One leg of a case: two sides, the steps of the strategy, and the hypervisor's transfer."""

from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.case.console import LoadControl
from vhdtool.lab.case.image_location import ImageLocation
from vhdtool.lab.case.observations import Observations
from vhdtool.lab.case.record import Record
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hosts.shim import Shim
from vhdtool.lab.hypervisors.driver import Guest, Outcome, Transfer
from vhdtool.lab.strategies import Leg, Step

TIMEOUT = 60.0
"""Seconds. Emulated machines that were not alone took more than 30 for the first 120 writes."""
AFTER_SWITCH = 60
"""Writes acknowledged after the switch before the steps that follow RESUME: a late close does
damage only where there is something to lose."""


@dataclass(frozen=True)
class Side:
    """A host with its shim and its guest."""

    host: Host
    shim: Shim
    guest: Guest


@dataclass
class Migration:
    """One leg, from `attach` to `leave_source`; or up to a rollback, see rollback.py."""

    leg: Leg
    source: Side
    destination: Side
    image: ImageLocation
    record: Record
    observations: Observations
    transfer: Transfer = field(init=False)
    """The hypervisor's part; from `begin` on."""

    @property
    def load(self) -> LoadControl:
        return self.record.load

    def attach(self) -> None:
        """Make the destination's shim serve a socket, which a guest needs when it starts."""
        if self._attaches_first():
            self.step(self.leg.before[0])
        else:
            # libxl's order adds the disk while the guest is suspended, but QEMU needs it now.
            self.destination.shim.call("export", size=self.image.plan.image_bytes)

    def _attaches_first(self) -> bool:
        return bool(self.leg.before) and self.leg.before[0].operation == "attach"

    def begin(self) -> None:
        """Begin to copy the guest's memory, and take the steps before SUSPENDED meanwhile."""
        port = self.image.plan.port
        self.transfer = self.source.guest.migrate_to(self.destination.guest, port)
        for step in self.leg.before[int(self._attaches_first()) :]:
            self.step(step)
        refusal = self.image.check_reservation(self.destination.host)
        if refusal is not None:
            self.record.note("kept-out", self.destination.host.name, reason=refusal)

    def switch(self) -> None:
        """Wait for SUSPENDED and take the steps that follow it."""
        moment = self.transfer.wait_suspended(TIMEOUT)
        fields = {"stop_mono": moment.stop_mono, "queued": dict(moment.queued)}
        self.record.note("suspended", self.source.host.name, **fields)
        self.observations.take_snapshot("source-quiesced", self.source.host)
        for step in self.leg.switch:
            self.step(step)

    def resume(self) -> None:
        """RESUME: the guest runs at the destination, and allocates blocks there."""
        host = self.destination.host
        try:
            completed = self.transfer.resume(TIMEOUT)
        except LabError as error:
            where = self.transfer.outcome().value
            raise LabError(f"{error}; the guest runs {where}") from error
        self.record.note("resumed", host.name, completed_mono=completed)
        acked, leg = self.record.consoles.acked, self.record.leg

        def allocated(event: dict[str, Any]) -> bool:
            fields = (event["event"], event["host"], event["leg"])
            return fields == ("allocated", host.name, leg)

        self.record.consoles.wait(
            "a block that the destination allocates",
            lambda: self.record.count(allocated) > 0,
            TIMEOUT,
        )
        self.record.consoles.wait_acked(acked + AFTER_SWITCH, TIMEOUT)
        found = self.transfer.outcome()
        if found is not Outcome.DESTINATION:
            raise LabError(f"the migration was reported as done; the guest runs {found.value}")
        self.observations.take_snapshot("destination-wrote", host)
        self.load.check(self.destination.guest)

    def finish(self) -> None:
        """Take the steps after RESUME; then the source's guest and shim end."""
        for step in self.leg.after:
            self.step(step)
        self.record.note("migrated")
        self.source.guest.kill()
        self.source.shim.detach()

    def step(self, step: Step) -> None:
        """One operation of a shim, and the snapshot that belongs to it."""
        side = self.source if step.side == "S" else self.destination
        arguments: dict[str, Any] = {}
        if step.operation == "attach":
            arguments = self.image.attach_arguments()
        elif step.operation == "open":
            arguments = {"mode": step.argument or "plain"}
        elif step.operation == "deactivate" and step.side == "S":
            # The guest may have to go on here: its requests wait until the migration is over.
            arguments = {"queue": True}
        side.shim.call(step.operation, **arguments)
        if step.operation == "deactivate" and step.side == "S":
            self.observations.take_snapshot("source-closed", side.host)
        if step.side == "D" and step.operation in ("open", "activate", "unpause"):
            self.observations.take_snapshot("destination-opened", side.host)
