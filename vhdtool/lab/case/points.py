"""Snapshots of the image's metadata at the points of a case."""

import contextlib
from dataclasses import dataclass, field

from vhdtool.errors import LabError
from vhdtool.lab.case.image_location import Medium
from vhdtool.lab.case.plan import Side
from vhdtool.lab.case.record import Record
from vhdtool.lab.hosts.connection import Host


@dataclass
class Points:
    """Taken at once, kept by the host that took them, and brought home when nobody waits."""

    record: Record
    taken: list[tuple[Host, int, int, str, int]] = field(default_factory=list)
    """(host, number of the snapshot there, leg, point, seq) of each snapshot."""

    def take(self, medium: Medium, point: str, side: Side) -> None:
        """One, as a side sees the image now."""
        seq, plan = self.record.seq(), medium.plan
        host = medium.host(side.host)
        number = host.call("metadata", path=plan.image, kind=plan.kind)
        self.taken.append((host, number, self.record.leg, point, seq))

    def collect(self) -> None:
        """Brings them home."""
        for host, number, leg, point, seq in self.taken:
            with contextlib.suppress(LabError):
                (one,) = host.call("snapshots", numbers=[number])
                self.record.metadata(leg, point, seq, one)
