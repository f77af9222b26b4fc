"""The machines as hosts of one kind: options, the files that they need, and the supervisor."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vhdtool.lab.commands import run_command
from vhdtool.lab.localhosts import ssh_files
from vhdtool.lab.localhosts.control import Kind
from vhdtool.lab.machines.layout import MACHINES
from vhdtool.lab.machines.seed import write_seed

FEATURES = 1
"""Rises when machines or snapshots of an older version of this package cannot be used."""
HOSTS = {machine.name: machine.address for machine in MACHINES}
OF_SNAPSHOT = ("id_ed25519*", "host_*", "authorized_keys", "known_hosts", "*.tar")
"""Files of the state directory that belong to a snapshot: the machines have these keys."""
_TOOLS = ("unshare", "nsenter", "ip", "nc", "ssh", "ssh-keygen", "qemu-system-x86_64", "qemu-img")


@dataclass(frozen=True)
class MachineOptions:
    """The base image, what the hosts boot, and the snapshot from which the machines start."""

    base: Path
    hypervisor: str = "kvm"
    snapshot: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"features": FEATURES, **{k: v and str(v) for k, v in asdict(self).items()}}


def _prepare(options: MachineOptions, directory: Path) -> None:
    """Make keys, seeds and disks in the state directory."""
    if options.snapshot is None:
        ssh_files.make_keys(directory, HOSTS)
    else:
        for pattern in OF_SNAPSHOT:
            for path in options.snapshot.glob(pattern):
                shutil.copyfile(path, directory / path.name)
                (directory / path.name).chmod(0o600)
    for machine in MACHINES:
        if options.snapshot is None:
            write_seed(machine, directory, directory / f"{machine.name}.tar")
            below = ["-F", "raw", "-b", str(options.base / "disk.img")]
        else:
            below = ["-F", "qcow2", "-b", str(options.snapshot / f"{machine.name}.qcow2")]
        disk = str(directory / f"{machine.name}.qcow2")
        run_command(["qemu-img", "create", "-q", "-f", "qcow2", *below, disk])


def _inside(options: MachineOptions, directory: Path) -> dict[str, Any]:
    base, started = str(options.base), options.snapshot is not None
    chosen = {"base": base, "hypervisor": options.hypervisor, "snapshot": started}
    return {**chosen, "files": str(directory)}


KIND = Kind(
    "machines", HOSTS, "vhdtool.lab.machines.supervisor", _prepare, _inside,
    ready_seconds=60.0, ssh_seconds=10.0, tools=_TOOLS,
)  # fmt: skip
