"""The owner of a lease: a process of a machine, and the proof that it is gone."""

import os
import time
from dataclasses import dataclass, field, replace

from vhdtool.machine import UNKNOWN_BOOT, boot_id, machine_id, process_start


@dataclass(frozen=True)
class Owner:
    """A process that can hold a lease."""

    host: str
    """The host's name as its operator calls it."""
    pid: int
    start: int
    """Start time of the process, in clock ticks after boot."""
    boot: str
    """The kernel's boot and the process's namespaces, as machine.boot_id."""
    node: str = ""
    """The kernel's host name, by which an NFSv4 server knows its clients."""
    machine: str = ""
    """The machine's id, the same after a reboot; "" where it is unknown."""
    since: float = field(default=0, compare=False)
    """Wall-clock seconds at which it took the lease; 0 where that is unknown."""

    @classmethod
    def here(cls, host: str | None = None) -> "Owner":
        """Returns this process, on the host `host`, by default its node name."""
        pid, node = os.getpid(), os.uname().nodename
        try:
            started = process_start(pid) or 0
        except OSError:
            # Without /proc nothing is ever proven, so nobody compares it.
            started = 0
        return cls(host or node, pid, started, boot_id(), node, machine_id())

    def now(self) -> "Owner":
        """Returns the same owner, taking the lease now."""
        return replace(self, since=time.time())

    def is_gone(self) -> bool:
        """Returns whether this process is proven to be gone; False where there is no proof."""
        here = boot_id()
        if here == UNKNOWN_BOOT:
            return False
        if self.boot != here:
            return self._ran_before_boot(here)
        try:
            return process_start(self.pid) != self.start
        except (OSError, OverflowError):
            return False

    def _ran_before_boot(self, here: str) -> bool:
        """Returns whether it ran on this machine before its last boot.

        A copy of this machine has its identity and a boot unknown here, too. So the lease must
        also have been taken, by our wall clock, before this kernel started.
        """
        if not self.machine or (self.machine, self.node) != (machine_id(), os.uname().nodename):
            return False
        if self.boot.split("/")[0] == here.split("/")[0] or self.boot == UNKNOWN_BOOT:
            return False
        return 0 < self.since < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def is_namesake(self) -> bool:
        """Returns whether another machine has our node name: one client to an NFS server."""
        ours = machine_id()
        return self.node == os.uname().nodename and bool(self.machine) and self.machine != ours

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"
