"""What one case is to do, and the two hosts in the roles that they have now."""

from dataclasses import dataclass

from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hosts.shim import Tap
from vhdtool.lab.hypervisors.qemu import Machine, Qemu
from vhdtool.lab.strategies import Strategy


@dataclass(frozen=True)
class CasePlan:
    """What one case is to do; sizes in bytes."""

    strategy: Strategy
    guard: bool
    seed: int
    name: str
    image: str
    kind: str
    """vhd or qcow2."""
    image_bytes: int
    block_bytes: int
    pace_us: int
    deep_blocks: int
    """Blocks at the end of the disk that the deep half of the load has to itself."""
    machine: Machine
    snapshot: str
    port: int

    @property
    def frees(self) -> bool:
        """Whether the load writes zeroes and discards.

        Not on qcow2: QEMU gives the clusters back, and one that vanishes or moves counts as damage.
        """
        return self.kind != "qcow2"


@dataclass
class Side:
    """A host with its shim and its QEMU, in the role it has now."""

    host: Host
    tap: Tap | None = None
    qemu: Qemu | None = None

    def shim(self) -> Tap:
        assert self.tap is not None
        return self.tap

    def machine(self) -> Qemu:
        assert self.qemu is not None
        return self.qemu
