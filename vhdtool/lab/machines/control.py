"""up, down and status of the emulated machines: two hosts and an NFS server."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.commands import run_command
from vhdtool.lab.localhosts import ssh_files
from vhdtool.lab.localhosts.control import Kind, LocalHosts, Status
from vhdtool.lab.localhosts.processes import Process
from vhdtool.lab.machines import snapshot as snapshots
from vhdtool.lab.machines.base_image import base_image
from vhdtool.lab.machines.layout import MACHINES, memory_needed, qemu_command
from vhdtool.lab.machines.seed import write_seed

FEATURES = 1
"""Rises when machines or snapshots of an older version of this package cannot be used."""
BOOT_SECONDS = 600.0
_TOOLS = ("unshare", "nsenter", "ip", "nc", "ssh", "ssh-keygen", "qemu-system-x86_64", "qemu-img")
HOSTS = {machine.name: machine.address for machine in MACHINES}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class MachineOptions:
    """The base image of the machines, and the snapshot from which they start."""

    base: Path
    snapshot: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"features": FEATURES, **{k: v and str(v) for k, v in asdict(self).items()}}


def _prepare(options: MachineOptions, directory: Path) -> None:
    """Make keys, seeds and disks in the state directory."""
    if options.snapshot is None:
        ssh_files.make_keys(directory, HOSTS)
    else:
        for pattern in snapshots.KEPT:
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
    return {"base": base, "snapshot": started, "files": str(directory)}


KIND = Kind(
    "machines", HOSTS, "vhdtool.lab.machines.supervisor", _prepare, _inside,
    ready_seconds=60.0, ssh_seconds=10.0, tools=_TOOLS,
)  # fmt: skip


class Machines:
    """The emulated machines of one state directory. `progress` gets each line for the user."""

    def __init__(self, state_directory: Path, cache: Path, progress: Progress) -> None:
        self.hosts = LocalHosts(state_directory, progress, KIND)
        self.directory = state_directory.absolute()
        self.cache = cache
        self.progress = progress

    def up(self, holder: Process | None = None, mark: str = "") -> bool:
        """Start the machines, built and booted before if need be; False when they ran already."""
        _check_memory()
        base = base_image(self.cache, self.progress)
        saved = self.cache / f"booted-{_snapshot_key(base)}"
        options = MachineOptions(base, saved)
        if not saved.exists():
            self._boot(base, saved, holder, mark)
        if not self.hosts.up(options, holder, mark):
            return False
        begun = time.monotonic()
        self.progress("starting the machines from their snapshot")
        snapshots.restore(self.directory, saved)
        self._wait_for_ssh(begun)
        return True

    def down(self, holder: Process | None = None, force: bool = False) -> bool:
        """End the machines with all their processes and files; False when there were none."""
        return self.hosts.down(holder, force)

    def status(self) -> Status:
        return self.hosts.status()

    def _boot(self, base: Path, saved: Path, holder: Process | None, mark: str) -> None:
        """Boot the machines once and save them."""
        self.progress("booting the machines (once, some 2 minutes)")
        begun = time.monotonic()
        self.hosts.up(MachineOptions(base), holder, mark)
        self._wait_for_ssh(begun)
        self.progress("saving the booted machines")
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="building-") as text:
            scratch = Path(text) / "booted"
            scratch.mkdir(mode=0o700)
            self._ssh_all("sync")
            snapshots.save(self.directory, scratch)
            patterns = (*snapshots.KEPT, "*.qcow2")
            for path in (path for pattern in patterns for path in self.directory.glob(pattern)):
                shutil.move(path, scratch / path.name)
            self.hosts.down(holder, force=True)
            scratch.replace(saved)

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
        try:
            text = (self.directory / f"{name}.console").read_text(errors="replace")
        except OSError:
            return "(no console)"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][-90:] if lines else "(empty)"


def _check_memory() -> None:
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    free, needed = int(fields["MemAvailable"].split()[0]), memory_needed()
    if free < needed:
        raise LabError(
            f"the machines need {needed >> 10} MiB of memory, {free >> 10} MiB are available"
        )


def _snapshot_key(base: Path) -> str:
    """Changes when a saved machine could not be read, or would be another one."""
    version = run_command(["qemu-system-x86_64", "--version"]).splitlines()[0]
    commands = [qemu_command(machine, base, incoming=False) for machine in MACHINES]
    here = Path(__file__).parent
    code = [(here / name).read_text() for name in ("seed.py", "layout.py")]
    inputs = json.dumps([FEATURES, version, commands, code])
    return hashlib.sha256(os.fsencode(inputs)).hexdigest()[:16]
