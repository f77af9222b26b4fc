"""The location of a case's image: a file that all hosts see, or a LUN over that file."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.case.iscsi_target import Target
from vhdtool.lab.case.plan import CasePlan
from vhdtool.lab.hosts.connection import Host, RemoteError


@dataclass
class ImageLocation:
    """The image of a case: named from the start, made by `create`, released by `close`."""

    plan: CasePlan
    target: Target | None = None
    """The iSCSI target in front of the image, where the strategy wants a LUN."""

    def create(self, source: Host, destination: Host) -> None:
        """Make a new image; a LUN's target runs on the source's host."""
        plan, lun = self.plan, self.plan.strategy.lun
        sizes = {"size": plan.image_bytes, "block": plan.block_bytes}
        source.call("create", path=plan.image, kind=plan.kind, lun=lun, **sizes)
        if lun:
            initiators = [host.config.address for host in (source, destination)]
            self.target = Target(source, plan.image, initiators)

    def attach_arguments(self) -> dict[str, Any]:
        """What the shim's operation `attach` is given."""
        image, target = self.plan.image, self.target
        path = image if target is None else target.url
        sizes = {"size": self.plan.image_bytes, "format": self.plan.kind}
        return {"path": path, "record": image + ".lease", **sizes}

    @property
    def lease(self) -> str | None:
        """The lock manager of the shims' lease; None where the epoch record is enough."""
        if self.target is None or not self.plan.guard:
            return None
        return f"scsi:{self.target.url}"

    def direct_host(self, asked: Host) -> Host:
        """The host that sees the image's file as it is: the target's own, where there is one."""
        return asked if self.target is None else self.target.host

    def check_reservation(self, destination: Host) -> str | None:
        """Read a reserved LUN from the destination; its refusal, or None without reservation.

        Raises LabError when the LUN lets the destination read all the same.
        """
        if self.target is None or self.lease is None:
            return None
        try:
            destination.call("peek", path=self.target.url)
        except RemoteError as refusal:
            if "has it reserved" in str(refusal):
                return str(refusal)
            raise
        raise LabError(f"{self.target.url}: let the destination in while the source held it")

    def close(self, save: Callable[[Host, str, str], None]) -> None:
        """End the target, if any; `save(host, path, name)` copies its log."""
        if self.target is not None:
            save(self.target.host, self.target.log, "target.log")
            with contextlib.suppress(LabError):
                self.target.end()
