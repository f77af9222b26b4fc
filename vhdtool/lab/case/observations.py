"""Observations of a case from outside: metadata snapshots, and the holdings of each host."""

import contextlib
from dataclasses import dataclass, field

from vhdtool.errors import LabError
from vhdtool.lab.case.image_location import ImageLocation
from vhdtool.lab.case.iscsi_target import NAME, PORT
from vhdtool.lab.case.record import Record
from vhdtool.lab.hosts.connection import Host

BEFORE, AFTER = "before", "after"


def after_leg(number: int) -> str:
    """The point at the end of a leg, with the guest running where the leg left it."""
    return f"leg-{number}"


@dataclass
class Observations:
    """Snapshots are taken at once, but collected from the hosts when no guest is suspended."""

    record: Record
    image: ImageLocation
    hosts: tuple[Host, Host]
    _snapshots: list[tuple[Host, int, int, str, int]] = field(default_factory=list)
    """(host, number of the snapshot there, leg, point, seq) of each snapshot."""

    def take_snapshot(self, point: str, host: Host) -> None:
        """A snapshot of the image's metadata, as this host sees it now."""
        seq, plan = self.record.seq(), self.image.plan
        host = self.image.direct_host(host)
        number = host.call("metadata", path=plan.image, kind=plan.kind)
        self._snapshots.append((host, number, self.record.leg, point, seq))

    def collect_snapshots(self) -> None:
        """Copy all snapshots into the record; those of a host that is gone are missing."""
        for host, number, leg, point, seq in self._snapshots:
            with contextlib.suppress(LabError):
                (snapshot,) = host.call("snapshots", numbers=[number])
                self.record.write_snapshot(leg, point, seq, snapshot)

    def record_holdings(self, point: str) -> None:
        """Record the locks, processes, devices and files that both hosts hold of the case.

        It takes too long for a moment at which the guest is suspended. Raises LabError when a
        host cannot list its holdings.
        """
        plan, target, seq = self.image.plan, self.image.target, self.record.seq()
        calls = [
            host.start(
                "held",
                image=plan.image,
                folder=f"{host.config.private_dir}/run",
                ports=[plan.port, PORT],
                target=[NAME, PORT],
                lun=target.url if target is not None else None,
            )
            for host in self.hosts
        ]
        for host, call in zip(self.hosts, calls, strict=True):
            found = host.result(call, "held")
            self.record.write_holdings(host.name, point, seq, plan.image, found)
