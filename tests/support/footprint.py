"""What a lab has left on the machine, found without asking the lab."""

import os
import subprocess
from pathlib import Path

from vhdtool.lab.localhosts import processes as procs
from vhdtool.lab.localhosts.control import LocalHosts


def remains(lab: LocalHosts, networks: set[int]) -> list[str]:
    """Processes, mounts, links, namespaces and files of `lab`, a line each.

    `networks`: inodes of network namespaces that the lab has had, as `networks_of` gave them.
    """
    directory, control = str(lab.state.directory), str(lab.control)
    found: list[str] = []
    mine = procs.ancestors(os.getpid())
    for pid in procs.pids():
        if pid in mine or procs.Process.of(pid) is None:
            continue
        command = procs.command_line(pid)
        if directory in command or control in command or procs.network_of(pid) in networks:
            found.append(f"process {pid}: {command[:80]}")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount: {line}" for line in mounts if "vhdlab" in line or directory in line]
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True)
    found += [
        f"link: {line}" for line in links.stdout.splitlines() if line.startswith(("vh-", "vhdlab"))
    ]
    found += [f"file: {entry}" for entry in lab.state.directory.glob("*")]
    if lab.control.exists():
        found.append(f"file: {lab.control}")
    return found


def networks_of(lab: LocalHosts) -> set[int]:
    """Inodes of the lab's network namespaces, without our own."""
    outer, _ = lab.state.supervisor()
    if outer is None:
        return set()
    pids = [outer.pid, *(process.pid for process in procs.descendants(outer.pid))]
    return {found for pid in pids if (found := procs.network_of(pid))} - {
        procs.network_of(os.getpid()) or 0
    }
