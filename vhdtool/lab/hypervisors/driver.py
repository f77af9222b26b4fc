"""What the lab asks of a hypervisor. The runner knows hypervisors by these protocols alone.

A case starts a guest (`Driver.guest`, `Guest.run_from`), migrates it (`Guest.migrate_to`) and
follows the migration (`Transfer`). Two moments belong to the hypervisor:

    SUSPENDED   the guest at the source is stopped, and all its requests are answered
    RESUME      the guest may run at the destination

A driver derives them, and the outcome of a migration, from events and states of both sides. The
exit code of a command is not enough: a migration can be reported as failed while the guest runs at
the destination, and as done after the guest was lost.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, Self

from vhdtool.lab.hosts.connection import Host, OnData

Progress = Callable[[str], None]


class Hold(Enum):
    """What the runner can hold between SUSPENDED and RESUME."""

    SWITCH = "the switch"
    """The guest stays suspended until `Transfer.resume`."""
    DESTINATION_DISK = "the destination's disk"
    """The hypervisor goes on by itself. The guest at the destination waits for its disk only where
    the shim there was paused before SUSPENDED. After the step that ends the pause it may write at
    once, also while the snapshot of that step is taken."""


class Outcome(Enum):
    """Where the guest of a migration runs, by the state of both sides."""

    SOURCE = "at the source"
    DESTINATION = "at the destination"
    BOTH = "on both hosts"
    NOWHERE = "on no host"

    @classmethod
    def of(cls, source: bool, destination: bool) -> "Outcome":
        if source and destination:
            return cls.BOTH
        if source or destination:
            return cls.SOURCE if source else cls.DESTINATION
        return cls.NOWHERE


@dataclass(frozen=True)
class Disk:
    """The disk of a guest, `size` bytes: behind a shim's NBD socket, or zeros without one."""

    size: int
    socket: str | None = None


@dataclass(frozen=True)
class Watch:
    """Callbacks about a guest, from any thread.

    `console` gets the bytes of its serial console. `trouble` gets one line when the guest cannot
    go on for a reason that the lab did not cause: its process died, it shut down or crashed, or
    its disk answered a request with an error. Such a case is an error of the lab.
    """

    console: OnData
    trouble: Callable[[str], None] = lambda why: None


@dataclass(frozen=True)
class Suspended:
    """The moment SUSPENDED. Times are those of the controller's monotonic clock."""

    stop_mono: float
    """When the guest was stopped; requests were answered after that."""
    queued: Mapping[str, int] = field(default_factory=dict)
    """Requests that each device had in flight during the migration; empty where it is unknown."""


class Transfer(Protocol):
    """The hypervisor's part of one migration. Every method raises LabError in one line."""

    def wait_suspended(self, timeout: float) -> Suspended:
        """Wait for SUSPENDED."""

    def resume(self, timeout: float) -> float:
        """Let the guest run at the destination; return when its memory was complete there.

        With Hold.DESTINATION_DISK it waits for RESUME, which comes without it.
        """

    def cancel(self, timeout: float) -> None:
        """Give the migration up; the guest runs at the source when this returns.

        With Hold.DESTINATION_DISK the guest may run at the destination already. It has written
        nothing, because its shim is paused, and must end before the source goes on.
        """

    def go_on_at_source(self, timeout: float) -> None:
        """As `cancel`, after the destination's guest was killed."""

    def outcome(self) -> Outcome:
        """Ask both sides where the guest runs."""


class Guest(Protocol):
    """A guest on one host. Nothing runs before `boot`, `run_from` or a migration to it."""

    host: Host
    log: str
    """Path on the host of the log that tells why it failed."""
    devices: int
    """Block devices by which the guest reaches its disk."""

    @property
    def alive(self) -> bool:
        """Whether it has started and not ended."""

    def boot(self) -> None:
        """Boot the guest from its kernel."""

    def save(self, path: str) -> None:
        """Stop the guest, and write its memory to a file of the host."""

    def run_from(self, path: str) -> None:
        """Run the guest from such a file."""

    def migrate_to(self, destination: Self, port: int) -> Transfer:
        """Begin a live migration; `port` is free for it on the destination."""

    def send(self, line: str) -> None:
        """Type a line on the guest's console."""

    def last_words(self) -> str:
        """The last line of its log."""

    def kill(self) -> None:
        """End it at once, also where it never began."""

    def describe(self) -> dict[str, Any]:
        """Its `id` (a pid, or a domain's number) and its sockets, for the checks of live hosts."""


class Driver(Protocol):
    """One hypervisor, as LabConfig.make_driver chooses it for a run."""

    hold: Hold
    discards: bool
    """Whether a guest's disk takes discards and requests to write zeroes."""
    accelerator: str
    """How guests run, for the record; valid after `prepare`."""

    def prepare(self, hosts: Sequence[Host], progress: Progress) -> None:
        """Find out what the hosts can do. Raises LabError when they cannot run the guest."""

    def fingerprint(self, host: Host, disk_bytes: int) -> Sequence[str]:
        """All that a memory state depends on: it is made anew when one of these changes."""

    def guest(self, host: Host, name: str, disk: Disk, watch: Watch) -> Guest:
        """A guest that does not run yet."""


class BootConsole:
    """The console of a guest that is not on record."""

    def __init__(self) -> None:
        self.text = b""

    def take(self, data: bytes) -> None:
        self.text += data

    def wait(self, wanted: bytes, timeout: float, guest: Guest) -> bool:
        """Wait for these bytes; False when the guest ended, or on a timeout."""
        deadline = time.monotonic() + timeout
        while wanted not in self.text:
            if time.monotonic() > deadline or not guest.alive:
                return False
            time.sleep(0.01)
        return True
