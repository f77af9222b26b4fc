"""Who holds a lease: a process of a machine, and the proof that it is gone."""

import os
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process that can hold a lease. `boot` names the kernel's run and the namespaces."""

    host: str
    """As its operator calls it."""
    pid: int
    start: int
    boot: str
    node: str = ""
    """The kernel's host name, by which an NFSv4 server knows its clients."""
    machine: str = ""
    """What stays the same over a reboot; "" where the system does not say."""
    since: float = field(default=0, compare=False)
    """Seconds of the wall clock at which it took the lease; 0: not told."""

    @classmethod
    def here(cls, host: str | None = None) -> "Owner":
        """This process, on the host that its operator calls `host`, by default its node name."""
        pid, node = os.getpid(), os.uname().nodename
        try:
            started = process_start(pid) or 0
        except OSError:
            # Without /proc nothing is ever proven, so nobody compares it.
            started = 0
        return cls(host or node, pid, started, boot_id(), node, machine_id())

    def now(self) -> "Owner":
        """The same, taking the lease now."""
        return replace(self, since=time.time())

    def is_gone(self) -> bool:
        """True when this process is proven to be gone; False where there is no proof."""
        here = boot_id()
        if here == NO_PROOF:
            return False
        if self.boot != here:
            return self._before_our_boot(here)
        try:
            return process_start(self.pid) != self.start
        except (OSError, OverflowError):
            return False

    def _before_our_boot(self, here: str) -> bool:
        """Whether it ran on this machine, before the machine was started again.

        Another machine with a copy of our identity would show a boot that we have not seen, too:
        so the lease must have been taken before our kernel started, by our wall clock.
        """
        if not self.machine or (self.machine, self.node) != (machine_id(), os.uname().nodename):
            return False
        if self.boot.split("/")[0] == here.split("/")[0] or self.boot == NO_PROOF:
            return False
        return 0 < self.since < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def is_namesake(self) -> bool:
        """Whether it is on another machine that has our node name: one client to an NFS server."""
        ours = machine_id()
        return self.node == os.uname().nodename and bool(self.machine) and self.machine != ours

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"


NO_PROOF = "unknown"
"""The boot of a process whose /proc does not show its own pid namespace."""


def boot_id() -> str:
    """The kernel's run and our namespaces, or NO_PROOF where /proc shows another pid namespace.

    In a container with its host's /proc every pid means something else, and in another time
    namespace every process seems to have started at another time: a live holder would look gone.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return NO_PROOF
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return NO_PROOF
    try:
        return f"{boot}/{pids}/{os.stat('/proc/self/ns/time').st_ino}"
    except OSError:
        # A kernel before 5.6 has no such namespaces.
        return f"{boot}/{pids}"


_MACHINE = (Path("/etc/machine-id"), Path("/sys/class/dmi/id/product_uuid"))


@cache
def machine_id() -> str:
    """What tells this machine from a copy of it: its machine-id and its firmware's uuid."""
    known = []
    for path in _MACHINE:
        try:
            known.append(path.read_text().strip().replace("-", "").lower())
        except OSError:
            known.append("")
    return "/".join(known) if known[0] else ""


def process_start(pid: int) -> int | None:
    """Clock ticks after boot at which a process started; None when there is none (proc(5)).

    Raises OSError when that cannot be told.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # A /proc mounted with hidepid shows no processes of others; kill() knows them all.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        raise
    fields = text.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])
