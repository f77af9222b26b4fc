"""Strategies are data: their steps, what is expected of them, and which points they must show."""

from pathlib import Path

import pytest

from vhdtool.errors import UsageError
from vhdtool.lab.strategies import ALL_POINTS, STRATEGIES, Step, leg, named

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = {
    "overlap": ("corrupt", "refused"),
    "late-close": ("corrupt", "refused"),
    "reopen-early": ("corrupt", "refused"),
    "activate": ("consistent", "consistent"),
    "reopen": ("consistent", "consistent"),
    "hold": ("consistent", "consistent"),
    "implicit": ("consistent", "consistent"),
    "implicit-first": ("corrupt", "refused"),
    "login": ("consistent", "consistent"),
    "xcp": ("consistent", "consistent"),
    "activate-back": ("consistent", "consistent"),
    "activate-retry": ("consistent", "consistent"),
}


def test_every_strategy_has_its_expectations() -> None:
    found = {name: (s.expected(False), s.expected(True)) for name, s in STRATEGIES.items()}
    assert found == TABLE


@pytest.mark.parametrize("name", [name for name, (off, _) in TABLE.items() if off == "consistent"])
def test_a_safe_order_releases_before_the_destination_reads(
    name: str,
) -> None:
    for one in STRATEGIES[name].legs:
        steps = [str(step) for step in one.switch]
        released = steps.index("S.deactivate")
        takes = [i for i, step in enumerate(steps) if step in ("D.activate", "D.unpause")]
        assert all(i > released for i in takes)
        assert "S.deactivate" not in [str(step) for step in one.after]


def test_on_a_lun_the_destination_attaches_after_the_source() -> None:
    assert [name for name, one in STRATEGIES.items() if one.lun] == ["login"]
    (one,) = STRATEGIES["login"].legs
    assert one.before == ()
    assert [str(step) for step in one.switch] == ["S.deactivate", "D.attach", "D.activate"]


def test_a_refused_case_must_show_that_all_was_closed() -> None:
    for strategy in STRATEGIES.values():
        if not strategy.safe:
            assert "all-closed" in strategy.points(guard=True)["1"]
            assert strategy.points(guard=False)["1"] == list(ALL_POINTS)


def test_steps_are_parsed_with_their_argument() -> None:
    assert Step.parse("D.open(each)") == Step("D", "open", "each")
    assert str(Step.parse("D.open(each)")) == "D.open(each)"


@pytest.mark.parametrize("text", ["X.open", "D.eat", "open", ""])
def test_what_is_no_operation_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="no such operation"):
        Step.parse(text)


def test_a_leg_has_three_parts() -> None:
    one = leg("D.attach | S.deactivate D.activate | S.detach")
    assert [len(part) for part in one.parts] == [1, 2, 1]
    assert str(one) == "D.attach | S.deactivate D.activate | S.detach"
    assert str(leg("D.attach D.open | | S.deactivate")) == "D.attach D.open | | S.deactivate"


def test_an_unknown_strategy_is_answered_with_the_list() -> None:
    with pytest.raises(
        UsageError,
        match=r"'oberlap' does not exist; did you mean overlap\? there are overlap, late-close",
    ):
        named("oberlap")
