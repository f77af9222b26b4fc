"""Ranges against the sets of numbers that they stand for."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vhdtool.ranges import Range, merge, merge_data, subtract

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)))


def numbers(ranges: list[Range]) -> set[int]:
    return {number for first, end in ranges for number in range(first, end)}


@given(RANGES)
def test_merge_keeps_the_numbers_and_leaves_gaps_between(ranges: list[Range]) -> None:
    merged = merge(ranges)
    assert numbers(merged) == numbers(ranges)
    assert all(one[1] < other[0] for one, other in pairwise(merged))


@given(st.tuples(st.integers(0, 40), st.integers(0, 40)), RANGES)
def test_subtract_leaves_what_no_range_owns(whole: Range, owned: list[Range]) -> None:
    left = list(subtract(whole, sorted(owned)))
    assert numbers(left) == numbers([whole]) - numbers(owned)
    assert all(first < end for first, end in left)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans())), st.integers(1, 5))
def test_merge_data_joins_neighbours_of_one_kind(ranges: list[tuple[int, bool]], most: int) -> None:
    kinds = [kind for length, kind in ranges for _ in range(length)]
    merged = merge_data(ranges, most)
    assert [kind for length, kind in merged for _ in range(length)] == kinds[
        : sum(length for length, _ in merged)
    ]
    assert all(one[1] != other[1] for one, other in pairwise(merged))
    assert len(merged) == most or sum(length for length, _ in merged) == len(kinds)
