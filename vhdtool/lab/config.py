"""The configuration of a run: read from JSON, and checked before anything is made."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.lab.hosts.connection import HostConfig
from vhdtool.lab.hypervisors.driver import Driver
from vhdtool.lab.options import OPTIONS, RunOptions, of_record
from vhdtool.oracle.evidence.case import HOST

FIELDS = tuple(option.field for option in OPTIONS)


def _qemu(kernel: str, initrd: str, accelerator: str) -> Driver:
    from vhdtool.lab.hypervisors.qemu import QemuDriver

    return QemuDriver(kernel, initrd, accelerator)


def _xen(kernel: str, initrd: str, accelerator: str) -> Driver:
    from vhdtool.lab.hypervisors.xen import XenDriver

    return XenDriver(kernel, initrd, accelerator)


DRIVERS: dict[str, Callable[[str, str, str], Driver]] = {"kvm": _qemu, "xen": _xen}
"""By the values of the option HYPERVISOR: the one place that names every hypervisor."""


@dataclass(frozen=True, kw_only=True)
class LabConfig(RunOptions):
    """The options of a run, and the hosts and paths; the role `migration` writes it."""

    run_dir: Path
    hosts: tuple[HostConfig, HostConfig]
    shared_dir: str
    kernel: str
    initrd: str
    ssh_config: Path | None = None
    storage: str = "a directory"
    inventory: tuple[str, ...] = ()
    """The arguments of `ansible-playbook -i`; none for `make lab`."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the roles from the command line of `ansible-playbook`."""
    live_tests: bool = False
    """Whether testinfra checks the hosts while a case is live, and after it."""
    pack: bool = False
    """Whether the images of the record are packed when all cases are judged."""

    @classmethod
    def load(cls, path: Path) -> "LabConfig":
        """Read the JSON file. Raises UsageError that names the wrong key."""
        try:
            raw = json.loads(path.read_text())
        except OSError as error:
            raise UsageError(f"{path}: no configuration of a lab: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path}: no configuration of a lab: {error}") from error
        try:
            return cls(**cls._fields(raw))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: bad configuration of a lab: {error}") from error

    @classmethod
    def _fields(cls, raw: dict[str, Any]) -> dict[str, Any]:
        guest = raw.pop("guest")
        options = of_record({name: raw.pop(name) for name in FIELDS if name in raw})
        raw["ssh_config"] = Path(raw["ssh_config"]) if raw.get("ssh_config") else None
        run_dir = Path(raw.pop("run_dir"))
        inventory = raw.pop("inventory", None) or ()
        raw["inventory"] = (inventory,) if isinstance(inventory, str) else tuple(inventory)
        hosts = tuple(HostConfig(**host) for host in raw.pop("hosts"))
        return {**raw, **options, "run_dir": run_dir, "hosts": hosts, **guest}

    def make_driver(self) -> Driver:
        """The driver of the hypervisor that the run asks for, for its guest."""
        return DRIVERS[self.hypervisor](self.kernel, self.initrd, self.accelerator)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hosts) != 2:
            raise UsageError(f"a lab has two hosts, not {len(self.hosts)}")
        for host in self.hosts:
            if not HOST.fullmatch(host.name):
                raise UsageError(
                    f"host {host.name!r}: a name has up to 63 letters, digits and . _ -, "
                    "and begins with a letter or digit; give it another in the inventory"
                )
        if self.hosts[0].name == self.hosts[1].name:
            raise UsageError(f"host {self.hosts[0].name}: named twice")
