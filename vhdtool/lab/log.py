"""The lines of a run in a log: one a case, with the time, and one word for every failure.

12:03:41 [3/15] overlap off s1 corrupt, as expected, 5.1 s
12:03:47 [4/15] overlap on s1 consistent, FAILED: refused was expected, 5.3 s: the guard ...
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FAILED = "FAILED"
"""In each line about a failure, and in no other: `grep FAILED` shows them all."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """A case and its number in the run."""

    number: int
    of: int
    label: str

    def __str__(self) -> str:
        return f"[{self.number}/{self.of}] {self.label}"


def verdict_line(place: Place, verdict: Mapping[str, Any], seconds: float) -> str:
    """The line about a case that was judged; it took that long without the judging."""
    got, expected = verdict["verdict"], verdict["expected"]
    if got == expected:
        return f"{place} {got}, as expected, {seconds:.1f} s"
    why = f"{seconds:.1f} s: {verdict['why']}"
    return f"{place} {got}, {FAILED}: {expected} was expected, {why}"


def with_time(progress: Progress) -> Progress:
    """Put the local time before each line."""

    def stamped(line: str) -> None:
        progress(f"{time.strftime('%H:%M:%S')} {line}")

    return stamped
