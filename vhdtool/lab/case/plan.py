"""The plan of one case, decided before anything runs."""

from dataclasses import dataclass
from typing import Any

from vhdtool.lab.strategies import Strategy


@dataclass(frozen=True)
class CasePlan:
    """The plan of one case; sizes in bytes."""

    strategy: Strategy
    guard: bool
    seed: int
    name: str
    image: str
    """Path of the image's file on the shared storage."""
    kind: str
    """vhd or qcow2."""
    image_bytes: int
    block_bytes: int
    profile: str
    pace_us: int
    deep_blocks: int
    """Blocks at the end of the disk that only the deep half of the load uses."""
    memory_state: str
    """Path on the source of the saved memory from which the guest starts."""
    port: int
    discards: bool = True
    """Whether the hypervisor passes on discards and requests to write zeroes."""

    @property
    def frees(self) -> bool:
        """Whether the load writes zeroes and discards.

        Not on qcow2: QEMU frees the clusters, and one that vanishes or moves counts as damage.
        """
        return self.discards and self.kind != "qcow2"

    @property
    def label(self) -> str:
        """The case in a log: strategy, guard and seed."""
        return f"{self.strategy.name} {'on' if self.guard else 'off'} s{self.seed}"

    def describe(self) -> dict[str, Any]:
        """The fields of case.json that describe the plan."""
        strategy = self.strategy
        return {
            "strategy": strategy.name,
            "steps": [str(leg) for leg in strategy.legs],
            "guard": self.guard,
            "seed": self.seed,
            "expected": strategy.expected(self.guard),
            "load": {
                "profile": self.profile,
                "pace_us": self.pace_us,
                "deep_blocks": self.deep_blocks,
                "frees": self.frees,
            },
            "image_bytes": self.image_bytes,
            "block_bytes": self.block_bytes,
            "image": f"image.{self.kind}",
            "legs": len(strategy.legs),
            "points": strategy.points(self.guard),
            "exclusive": strategy.lun and self.guard,
        }
