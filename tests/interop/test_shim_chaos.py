"""40 kills of a shim; `make chaos` does 500."""

from tests.interop.shim_chaos import ANYWHERE, run
from vhdtool.tapdisk.failpoint import NAMES


def test_a_killed_shim_loses_nothing_and_the_next_one_takes_over() -> None:
    deaths = run(40, seed=7)
    assert sum(deaths.values()) == 40
    # It died where it was told to, too: otherwise the points are not where they should be.
    assert len(set(deaths) - {ANYWHERE}) >= len(NAMES) - 3, deaths
