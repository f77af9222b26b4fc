"""The quick looks at a BAT, beside the slow and obvious ones."""

import random
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdtool.image.metadata import bat_sort as order
from vhdtool.vhd.bat import pack_bat
from vhdtool.vhd.units import UNUSED

ODD = st.sampled_from(
    [0, 1, 0xFF, 0xFFFF, 0xFFFFFF, 0xFF000000, 0xFFFF0000, 0xFFFFFF00, 0xFFFFFFFE, UNUSED]
)
PLACE = ODD | st.integers(0, UNUSED) | st.integers(0, 50)


def slowly_apart(places: list[int], sectors: int) -> bool:
    return all(after - before >= sectors for before, after in pairwise(places))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "CHUNK", 5)


@settings(max_examples=300)
@given(st.lists(PLACE, max_size=40))
def test_what_is_used(entries: list[int]) -> None:
    found = order.used_entries(pack_bat(array("I", entries), fill=0xFF), len(entries))
    assert list(found) == [entry for entry in entries if entry != UNUSED]


def test_the_library_was_built() -> None:
    assert order.compiled


@pytest.mark.parametrize("use_c", [True, False])
@settings(max_examples=300)
@given(places=st.lists(PLACE, max_size=40), sectors=st.integers(1, 5000), limit=PLACE)
def test_in_order(use_c: bool, places: list[int], sectors: int, limit: int) -> None:
    found, apart = order.sort_entries(array("I", places), sectors, limit, use_c)
    assert (list(found), apart) == (sorted(places), slowly_apart(sorted(places), sectors))


@settings(max_examples=300)
@given(st.lists(PLACE, max_size=40), st.sampled_from([0, 1, 2, 9, 4097]), st.booleans())
def test_apart(places: list[int], sectors: int, in_order: bool) -> None:
    if in_order:
        places.sort()
    assert order.disjoint(array("I", places), sectors) == slowly_apart(places, sectors)


@settings(max_examples=100)
@given(st.integers(1, 100), st.integers(2, 60), st.data())
def test_one_sector_too_near_is_seen_wherever_it_is(
    first: int, count: int, data: st.DataObject
) -> None:
    places = array("I", [first + 4097 * number for number in range(count)])
    assert order.disjoint(places, 4097)
    at = data.draw(st.integers(0, count - 1))
    places[at] += data.draw(st.sampled_from([-1, 1]))
    good = slowly_apart(list(places), 4097)
    assert order.disjoint(places, 4097) == good
    mixed = array("I", random.Random(at).sample(list(places), count))
    assert order.sort_entries(mixed, 4097, max(places)) == (array("I", sorted(places)), good)
