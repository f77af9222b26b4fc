"""A disk, as the NBD server and the fast path see it. Nothing here loads C code."""

from dataclasses import dataclass
from typing import Any, Protocol

from vhdtool.nbd.metrics import Counters, Latency, new_counters
from vhdtool.ranges import DataRange


class FastPathGate(Protocol):
    """The fast path's side of a gate: its requests pass without Python."""

    @property
    def generation(self) -> int:
        """Counts the calls of `set`: a grant is valid for one generation."""

    def set(self, serves: bool) -> None:
        """Lets requests begin, or none. Takes effect before it returns."""

    def inside(self) -> int:
        """Returns the number of requests in flight."""

    def extend(self, seconds: float) -> None:
        """Lets requests begin for so long; after that Python must check the lease again."""


class NoFastPath:
    """The fast path's side of a gate where there is no fast path."""

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


class Backend:
    """A disk that is served. Offsets and lengths in bytes; many threads call it at once.

    Requests raise OSError or VhdtoolError: the client gets the errno. A subclass implements the
    methods that raise NotImplementedError here. The properties and the other methods declare what
    only some disks can do; their defaults suit all others.
    """

    def export_size(self) -> int:
        raise NotImplementedError

    @property
    def read_only(self) -> bool:
        return False

    # requests

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def write(self, offset: int, data: memoryview) -> None:
        raise NotImplementedError

    def write_zeroes(self, offset: int, length: int) -> None:
        raise NotImplementedError

    @property
    def can_fast_zero(self) -> bool:
        """Whether `write_zeroes` costs less than writing."""
        return False

    def flush(self) -> None:
        raise NotImplementedError

    @property
    def can_trim(self) -> bool:
        return False

    def trim(self, offset: int, length: int) -> None:
        """Frees a range, where `can_trim`."""

    @property
    def can_prefetch(self) -> bool:
        return False

    def prefetch(self, offset: int, length: int) -> None:
        """Reads a range ahead, where `can_prefetch`."""

    @property
    def can_extents(self) -> bool:
        return False

    def extents(self, offset: int, length: int, most: int) -> list[DataRange]:
        """Returns the first `most` (bytes, holds data) of a range, where `can_extents`."""
        raise NotImplementedError

    def waits(self) -> bool:
        """Returns whether a request would wait now."""
        return False

    # clients

    latency: Latency | None = None
    """Where latencies of requests go."""

    def connected(self) -> Counters:
        """Returns the counters for a new client."""
        return new_counters()

    def disconnected(self, counters: Counters) -> None:
        """A client has gone; its counters change no more."""

    # the fast path

    @property
    def fast_path_gate(self) -> FastPathGate:
        """The gate that fast-path requests pass."""
        return NoFastPath()

    def grant(self) -> Grant | None:
        """Returns what the fast path may do now; None while Python must serve each request."""
        return None

    def allocate(self, block: int, generation: int, inside: bool) -> None:
        """Allocates an absent block. Raises OSError or VhdtoolError.

        `generation`: of the grant that showed it as absent. `inside`: the client has requests in
        flight, so it has passed the gate already.
        """
        raise NotImplementedError
