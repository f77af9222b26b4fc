"""Ranges of bytes or sectors: to merge them, and to subtract them from one another."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
Range = tuple[int, int]
"""[start, end)"""
DataRange = tuple[int, bool]
"""(length, whether it may hold data); a sequence of them has no gaps."""


def join(items: Iterable[T], joined: Callable[[T, T], T | None]) -> Iterator[T]:
    """Replace neighbours by `joined` of the two, unless that is None."""
    last: T | None = None
    for item in items:
        both = None if last is None else joined(last, item)
        if both is None and last is not None:
            yield last
        last = item if both is None else both
    if last is not None:
        yield last


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and merge those that overlap or touch; drop empty ones.

    >>> merge([(4, 6), (0, 2), (2, 3), (9, 9), (5, 8)])
    [(0, 3), (4, 8)]
    """
    return list(join(sorted(one for one in ranges if one[0] < one[1]), _touching))


def _touching(one: Range, other: Range) -> Range | None:
    return (one[0], max(one[1], other[1])) if other[0] <= one[1] else None


def subtract(whole: Range, owned: Iterable[Range]) -> Iterator[Range]:
    """Yield the parts of `whole` outside of all `owned` ranges, which are sorted by start.

    >>> list(subtract((0, 10), [(1, 3), (2, 4), (8, 12)]))
    [(0, 1), (4, 8)]
    """
    first, end = whole
    for start, stop in owned:
        if stop <= first or start >= end:
            continue
        if start > first:
            yield first, start
        first = max(first, stop)
    if first < end:
        yield first, end


def merge_data(ranges: Iterable[DataRange], most: int) -> list[DataRange]:
    """Merge neighbours of one kind; return the first `most` of the resulting ranges.

    >>> merge_data([(1, True), (2, True), (4, False), (8, True)], most=2)
    [(3, True), (4, False)]
    """
    return list(islice(join((one for one in ranges if one[0]), _same_kind), most))


def _same_kind(one: DataRange, other: DataRange) -> DataRange | None:
    return (one[0] + other[0], one[1]) if one[1] == other[1] else None
