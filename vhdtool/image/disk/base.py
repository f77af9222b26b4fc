"""What every open disk offers to a server, and what its owner may set: the hooks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from vhdtool.nbd.backend import FastPathLayout
from vhdtool.ranges import DataRange

if TYPE_CHECKING:
    from vhdtool.image.chain.layers import Layer


@dataclass(frozen=True)
class Hooks:
    """Callbacks of an open disk to its owner."""

    may_write_metadata: Callable[[], None] = lambda: None
    """Called before each metadata write. Raises LeaseLost when nothing more may be written."""
    allocated: Callable[[int, int], None] = lambda block, entry: None
    """Called when a block has its BAT entry on the disk."""
    reached: Callable[[str], None] = lambda point: None
    """Called at each kill point, with its name."""
    clock: Callable[[], float] = monotonic


class Parent(Protocol):
    """The chain below a differencing disk. Offsets are bytes."""

    @property
    def layers(self) -> "Sequence[Layer]":
        """Its images, nearest first, where they are known."""
        return ()

    def read(self, offset: int, length: int) -> bytes:
        """Guest bytes; fewer behind the parent's end."""
        raise NotImplementedError

    def data_ranges(self, start: int, end: int) -> Iterator[DataRange]:
        """The guest bytes [start, end), also behind the parent's end, in whole sectors."""
        raise NotImplementedError

    def close(self) -> None:
        """Close its images."""
        return


class ZeroParent(Parent):
    """A parent that reads as zeros, for a writer that needs nothing from below."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def data_ranges(self, start: int, end: int) -> Iterator[DataRange]:
        if start < end:
            yield end - start, False


class OpenDisk:
    """One open image of any kind. Offsets and lengths are bytes; methods raise StorageError.

    A subclass implements the methods that raise NotImplementedError here. The rest declares what
    only some disks have.
    """

    size: int
    parent: Parent | None = None

    @property
    def last_metadata(self) -> float | None:
        """When this open last wrote metadata, by the hooks' clock; None: it did not."""
        return None

    @property
    def truncated_to(self) -> int | None:
        """The length to which this open has cut the file."""
        return None

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def write(self, offset: int, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        raise NotImplementedError

    def trim(self, offset: int, length: int) -> None:
        """Free the space of a range where that is cheap; its content is undefined then."""
        raise NotImplementedError

    def prefetch(self, offset: int, length: int) -> None:
        """Announce that a range will be read."""
        raise NotImplementedError

    def flush(self) -> None:
        """Return when all that was written is durable."""
        raise NotImplementedError

    def extents(self, offset: int, length: int, most: int) -> list[DataRange]:
        """The first `most` ranges from `offset`, neighbours of one kind merged."""
        raise NotImplementedError

    def finish(self) -> bool:
        """Make all durable and close the image, but not its storage; True: it wrote a footer."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Close the storage and write nothing."""
        raise NotImplementedError

    def close(self) -> bool:
        """Call `finish`, and close the storage in any case."""
        try:
            return self.finish()
        finally:
            self.abandon()

    # the fast path

    def fast_path_layout(self, writing: bool) -> FastPathLayout | None:
        """Layout for the fast path, which only reads unless `writing`; None: it cannot serve."""
        return None

    def allocate(self, block: int) -> None:
        """Allocate a block for the fast path. Raises SplitBrain, LeaseLost."""
        raise NotImplementedError


def require_inside(name: str, size: int, offset: int, length: int) -> None:
    """Raise ValueError for a request that exceeds a disk of `size` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{name}: {length} bytes at {offset} pass the disk's end")
