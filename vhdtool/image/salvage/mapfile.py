"""The result of a salvage as a mapfile of GNU ddrescue.

Format: "Mapfile structure" in ddrescue's manual. Its tools then list the lost sectors, or copy them
from another source.
"""

from collections.abc import Iterable, Iterator

from vhdtool.ranges import Range, merge, subtract

RESCUED, LOST, GUESSED = "+", "-", "/"
"""ddrescue's "finished", "bad sector", and "failed, non-scraped": placed blocks are a guess."""


def mapfile(size: int, lost: Iterable[Range], guessed: Iterable[Range], title: str) -> str:
    """The text of a mapfile for a copy of `size` bytes; ranges are bytes of the copy."""
    lines = [
        f"# Mapfile. Created by vhdtool: {' '.join(title.split())}",
        "# + copied, - lost, / placed by evidence (a guess)",
        "# current_pos  current_status  current_pass",
        f"0x{size:08X}     +               1",
        "#      pos        size  status",
    ]
    lines += [
        f"0x{start:08X}  0x{end - start:08X}  {status}"
        for start, end, status in _blocks(size, merge(lost), merge(guessed))
    ]
    return "\n".join(lines) + "\n"


def _blocks(size: int, lost: list[Range], guessed: list[Range]) -> Iterator[tuple[int, int, str]]:
    """All bytes of the copy in order, as (start, end, status)."""
    found = [(*one, LOST) for one in lost]
    found += [(*part, GUESSED) for one in guessed for part in subtract(one, lost)]
    known = sorted((max(start, 0), min(end, size), status) for start, end, status in found)
    position = 0
    for start, end, status in known:
        if start >= end:
            continue
        if position < start:
            yield position, start, RESCUED
        yield start, end, status
        position = end
    if position < size:
        yield position, size, RESCUED
