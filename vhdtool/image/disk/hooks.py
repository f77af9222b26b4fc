"""What an open image asks and tells."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True)
class Hooks:
    """What the owner of the disk wants to be asked and told."""

    may_write_metadata: Callable[[], None] = lambda: None
    """Raises LeaseLost when nothing more may be written."""
    allocated: Callable[[int, int], None] = lambda block, sector: None
    """A block has got its place (BAT entry) in the file."""
    reached: Callable[[str], None] = lambda point: None
    """A named point of an operation: where a test kills the process."""
    clock: Callable[[], float] = monotonic
