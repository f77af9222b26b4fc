"""The supervisor of the emulated machines, pid 1 of the lab: two bridges, and a QEMU each.

Run as that of the local hosts is, and it ends as that does. It writes `ready` when every QEMU has
its monitor; the machines then boot, or read their snapshot.
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.commands import last_line
from vhdtool.lab.localhosts.supervisor import ip_batch, supervise
from vhdtool.lab.machines.layout import GATEWAY, MACHINES, MANAGEMENT, PREFIX, STORAGE, qemu_command

_MONITOR_SECONDS = 20.0


def _start_network() -> None:
    lines = ["link set lo up"]
    for bridge in (MANAGEMENT, STORAGE):
        lines += [f"link add {bridge} type bridge", f"link set {bridge} up"]
        for machine in MACHINES:
            tap = machine.tap(bridge)
            lines += [f"tuntap add dev {tap} mode tap", f"link set {tap} master {bridge} up"]
    ip_batch([*lines, f"addr add {GATEWAY}/{PREFIX} dev {MANAGEMENT}"])


def _start_machines(config: dict[str, Any]) -> None:
    base, folder = Path(config["base"]), Path(config["files"])
    for machine in MACHINES:
        words = qemu_command(machine, base, config["hypervisor"], incoming=config["snapshot"])
        log = os.open(folder / f"qemu-{machine.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        os.close(log)
    deadline = time.monotonic() + _MONITOR_SECONDS
    for machine in MACHINES:
        while not (folder / f"{machine.name}.qmp").exists():
            if time.monotonic() > deadline:
                said = last_line(folder / f"qemu-{machine.name}.log")
                raise LabError(f"{machine.name}: QEMU did not start: {said}")
            time.sleep(0.02)


def _start(config: dict[str, Any]) -> None:
    _start_network()
    _start_machines(config)


if __name__ == "__main__":
    supervise("vhdlab-machines", _start)
