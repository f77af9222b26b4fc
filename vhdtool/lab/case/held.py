"""Looks at what both hosts hold of a case, for the record; never while the guest stands still."""

from dataclasses import dataclass

from vhdtool.lab.case.image_location import Medium
from vhdtool.lab.case.iscsi_target import NAME, PORT
from vhdtool.lab.case.record import Record
from vhdtool.lab.hosts.connection import Host

BEFORE, AFTER = "before", "after"


def after_leg(number: int) -> str:
    """The point at the end of a leg, with the guest running where the leg left it."""
    return f"leg-{number}"


@dataclass
class Holdings:
    """One call of each host's agent at each point of a case."""

    record: Record
    hosts: tuple[Host, Host]

    def look(self, medium: Medium, point: str) -> None:
        """Raises LabError when a host cannot say what it holds."""
        plan, target, seq = medium.plan, medium.target, self.record.seq()
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
            self.record.held(host.name, point, seq, plan.image, host.result(call, "held"))
