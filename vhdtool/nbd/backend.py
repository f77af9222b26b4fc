"""What the fast path needs of a disk, and a disk of the fast path. Nothing here loads C code."""

from dataclasses import dataclass
from typing import Any, Protocol


class FastPathGate(Protocol):
    """The fast path's side of a gate: its requests pass without Python."""

    @property
    def generation(self) -> int:
        """Counts each `set`: a grant is valid for one generation."""

    def set(self, serves: bool) -> None:
        """Lets requests begin, or none. Takes effect before it returns."""

    def inside(self) -> int:
        """Requests in flight."""

    def extend(self, seconds: float) -> None:
        """Lets requests begin for so long; after that Python must check the lease again."""


class NoFastPath:
    """The gate's side of a fast path that is not there."""

    generation = 0

    def set(self, serves: bool) -> None:
        pass

    def inside(self) -> int:
        return 0

    def extend(self, seconds: float) -> None:
        pass


@dataclass(frozen=True, slots=True)
class FastPathLayout:
    """Block layout of an open image, exported to the fast path. Sizes in bytes.

    BAT and flags are the image's own, and change under the reader. A BAT entry changes only once,
    from unused to a sector. The block's flag is set before that, so a reader that loads the entry
    first finds both. A flag without an entry says nothing.
    """

    fd: int
    direct: bool
    """The descriptor bypasses the page cache: memory and offsets must be aligned."""
    size: int
    block_bytes: int = 0
    """0: the disk is its file."""
    bitmap_bytes: int = 0
    bat: Any = None
    """array("I") of each block's sector, or UNUSED."""
    full: Any = None
    """A byte for each block: whether all of its sectors are present."""
    zeros: bool = False
    """A block without a BAT entry reads as zeros."""
    whole: bool = False
    """A block that is allocated without data (`allocate`) is full from then on."""


@dataclass(frozen=True)
class Grant:
    """What the fast path may do for one client, as long as the gate has this generation."""

    layout: FastPathLayout
    generation: int
    writable: bool
