"""Where the image of a case lies: in a file that all hosts see, or on a LUN over that file."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.case.iscsi_target import Target
from vhdtool.lab.case.plan import CasePlan
from vhdtool.lab.hosts.connection import Host, RemoteError


@dataclass
class Medium:
    """The image, made by `make`; ends with `end`."""

    plan: CasePlan
    target: Target | None = None

    @classmethod
    def make(cls, plan: CasePlan, source: Host, destination: Host) -> "Medium":
        """A new image; where the strategy wants a LUN, with its target at the source's host."""
        lun = plan.strategy.lun
        sizes = {"size": plan.image_bytes, "block": plan.block_bytes}
        source.call("create", path=plan.image, kind=plan.kind, lun=lun, **sizes)
        hosts = [host.config.address for host in (source, destination)]
        return cls(plan, Target(source, plan.image, hosts) if lun else None)

    def disk(self) -> dict[str, Any]:
        """What a shim attaches."""
        image, target = self.plan.image, self.target
        path = image if target is None else target.url
        sizes = {"size": self.plan.image_bytes, "format": self.plan.kind}
        return {"path": path, "record": image + ".lease", **sizes}

    @property
    def lease(self) -> str | None:
        """What a shim's lease is kept by, beside the epoch record."""
        if self.target is None or not self.plan.guard:
            return None
        return f"scsi:{self.target.url}"

    def host(self, asked: Host) -> Host:
        """Who sees the file as it is: with a target between, only the target's own host."""
        return asked if self.target is None else self.target.host

    def keeps_out(self, destination: Host) -> str | None:
        """What a reserved LUN said to the destination; None where nothing is reserved.

        Raises LabError when it lets the destination read all the same.
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

    def end(self, save: Callable[[Host, str, str], None]) -> None:
        """Ends the target, if any; `save(host, path, name)` takes its log."""
        if self.target is not None:
            save(self.target.host, self.target.log, "target.log")
            with contextlib.suppress(LabError):
                self.target.end()
