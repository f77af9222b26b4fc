"""Where an open image's data lies, for who moves it without asking for each request."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StraightMap:
    """Sizes in bytes. The table and the flags are the image's own, and change under the reader.

    A block's place changes only once, from none to where it is. Its flag is set before that, so who
    looks for the place first finds both. A flag without a place says nothing.
    """

    fd: int
    direct: bool
    """The descriptor bypasses the page cache: memory and offsets have to be aligned."""
    size: int
    block_bytes: int = 0
    """0: the disk is its file."""
    bitmap_bytes: int = 0
    table: Any = None
    """array("I") of each block's sector, or UNUSED."""
    full: Any = None
    """A byte for each block: whether all of its sectors are there."""
    zeros: bool = False
    """A block without a place reads as zeros."""
    whole: bool = False
    """A block that gets a place (make_place) is full from then on."""
