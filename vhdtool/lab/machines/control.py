"""up, down and status of the emulated machines: two hosts and an NFS server."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from vhdtool.errors import LabError
from vhdtool.lab.commands import last_line, run_command
from vhdtool.lab.localhosts.control import LocalHosts, Status
from vhdtool.lab.localhosts.processes import Process
from vhdtool.lab.machines.base_image import base_image
from vhdtool.lab.machines.cache import Progress, building, locked
from vhdtool.lab.machines.kind import FEATURES, HOSTS, KIND, OF_SNAPSHOT, MachineOptions
from vhdtool.lab.machines.layout import MACHINES, memory_needed, qemu_command
from vhdtool.lab.machines.snapshot import restore, save

BOOT_SECONDS = 600.0
SNAPSHOT_BYTES = 3 << 30
"""Free bytes that a snapshot needs; the memory of machines that have just booted has many zeros."""


class Machines:
    """The emulated machines of one state directory. `progress` gets each line for the user.

    `hypervisor`: what the hosts boot, one of HYPERVISORS.
    """

    def __init__(
        self, state_directory: Path, cache: Path, progress: Progress, hypervisor: str = "kvm"
    ) -> None:
        self.hosts = LocalHosts(state_directory, progress, KIND)
        self.directory = state_directory.absolute()
        self.cache = cache
        self.progress = progress
        self.hypervisor = hypervisor

    def up(self, holder: Process | None = None, mark: str = "") -> bool:
        """Start the machines, built and booted before if need be; False when they ran already."""
        self.hosts.need_root_and_tools()
        if self.status().state != "running":
            _check_memory()
        with locked(self.cache, self.progress):
            base = base_image(self.cache, self.progress)
            saved = self.cache / f"booted-{_snapshot_key(base, self.hypervisor)}"
            if not saved.exists():
                self._boot(base, saved, holder, mark)
        if not self.hosts.up(MachineOptions(base, self.hypervisor, saved), holder, mark):
            return False
        begun = time.monotonic()
        self.progress("starting the machines from their snapshot")
        try:
            restore(self.directory, saved)
        except LabError as error:
            # A snapshot that cannot be read would fail at every start.
            self.hosts.down(holder, force=True)
            shutil.rmtree(saved)
            raise LabError(
                f"{error}; the snapshot is removed: the next start boots them"
            ) from error
        self._wait_for_ssh(begun)
        return True

    def down(self, holder: Process | None = None, force: bool = False) -> bool:
        """End the machines with all their processes and files; False when there were none."""
        return self.hosts.down(holder, force)

    def status(self) -> Status:
        return self.hosts.status()

    def _boot(self, base: Path, saved: Path, holder: Process | None, mark: str) -> None:
        """Boot the machines once and save them."""
        self.progress("booting the machines (once, a minute or more)")
        begun = time.monotonic()
        self.hosts.up(MachineOptions(base, self.hypervisor), holder, mark)
        self._wait_for_ssh(begun)
        self.progress("saving the booted machines")
        with building(saved, SNAPSHOT_BYTES) as scratch:
            self._ssh_all("sync")
            save(self.directory, scratch / "made")
            patterns = (*OF_SNAPSHOT, "*.qcow2")
            for path in (path for pattern in patterns for path in self.directory.glob(pattern)):
                shutil.move(path, scratch / "made" / path.name)
            self.hosts.down(holder, force=True)

    def _wait_for_ssh(self, begun: float) -> None:
        """Wait until every machine answers, and set its clock: it stood while it was saved."""
        waiting = [machine.name for machine in MACHINES]
        said = time.monotonic()
        while waiting:
            waiting = self._ssh_all(f"date -u -s @{time.time():.0f}", waiting)
            now = time.monotonic()
            if waiting and now - begun > BOOT_SECONDS:
                last = self._last_words(waiting[0])
                raise LabError(
                    f"{waiting[0]} does not answer {BOOT_SECONDS:.0f} s after its start; "
                    f"its console ends with: {last}"
                )
            if waiting and now - said > 8:
                said = now
                last = self._last_words(waiting[0])
                self.progress(f"  {now - begun:3.0f} s: waiting for {', '.join(waiting)}: {last}")
        self.progress(f"the machines answer after {time.monotonic() - begun:.0f} s")

    def _ssh_all(self, command: str, names: list[str] | None = None) -> list[str]:
        """Run a command on machines at the same time; those where it failed."""
        config = str(self.directory / "ssh_config")
        words = ["ssh", "-F", config, "-o", "ConnectTimeout=10", "-o", "BatchMode=yes"]
        children = {
            name: subprocess.Popen(
                [*words, name, command], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for name in names or list(HOSTS)
        }  # fmt: skip
        failed = [name for name, child in children.items() if child.wait()]
        if failed:
            time.sleep(0.5)
        return failed

    def _last_words(self, name: str) -> str:
        return last_line(self.directory / f"{name}.console")[-90:] or "(empty)"


def _check_memory() -> None:
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    free, needed = int(fields["MemAvailable"].split()[0]), memory_needed()
    if free < needed:
        raise LabError(
            f"the machines need {needed >> 10} MiB of memory, {free >> 10} MiB are available"
        )


def _snapshot_key(base: Path, hypervisor: str) -> str:
    """Changes when a saved machine could not be read, or would be another one."""
    version = run_command(["qemu-system-x86_64", "--version"]).splitlines()[0]
    commands = [qemu_command(machine, base, hypervisor, incoming=False) for machine in MACHINES]
    here = Path(__file__).parent
    code = [(here / name).read_text() for name in ("seed.py", "layout.py")]
    inputs = json.dumps([FEATURES, version, commands, code])
    return hashlib.sha256(os.fsencode(inputs)).hexdigest()[:16]
