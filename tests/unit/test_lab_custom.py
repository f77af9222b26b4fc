"""An order that a user gives: judged as a strategy is, or refused in one line."""

import pytest

from vhdtool.errors import UsageError
from vhdtool.lab.custom import check_order, custom_strategy, guards_of, parse_order
from vhdtool.lab.options import RunOptions
from vhdtool.lab.strategies import ALL_POINTS, STRATEGIES, Strategy

ACTIVATE = "D.attach | S.deactivate D.activate | S.detach"
SINGLE = [one for one in STRATEGIES.values() if len(one.legs) == 1]


@pytest.mark.parametrize("one", SINGLE, ids=lambda one: one.name)
@pytest.mark.parametrize("guard", [False, True])
def test_each_strategy_of_one_leg_can_be_given(one: Strategy, guard: bool) -> None:
    order = parse_order(str(one.legs[0]))
    assert order.parts == one.legs[0].parts
    check_order(order, guard)


def test_a_given_order_has_the_points_of_a_strategy() -> None:
    one = custom_strategy(ACTIVATE, "consistent")
    assert one.points(True) == one.points(False) == {"1": list(ALL_POINTS)}
    assert (one.expected(True), one.expected(False)) == ("consistent", "consistent")
    assert custom_strategy(ACTIVATE, "refused").points(True) == {"1": ["all-closed"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("D.attach S.deactivate", "an order has three parts"),
        ("D.attach | S.deactivat D.activate | S.detach", "did you mean S.deactivate?"),
        ("D.attach | S.deactivate D.open(ech) | ", "open has the modes plain, each, first"),
        ("D.attach(each) | S.deactivate D.activate | ", "only open has an argument"),
        ("S.attach | S.deactivate D.activate | ", "the source is active from the start"),
        ("D.attach | S.deactivate D.activate | D.detach", "D.detach: the guest needs"),
        ("D.attach | D.activate | S.detach", "S.deactivate is there 0 times"),
        (f"D.attach | {'S.pause S.unpause ' * 20} S.deactivate D.open |", "the most are 40"),
        ("D.attach)| S.deactivate D.activate |", "no such operation"),
    ],
)
def test_words_that_are_no_order_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunOptions.of_make({"STEPS": text})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("D.open | S.deactivate D.activate |", "D.open: the disk is detached, must be attached"),
        ("D.attach S.deactivate | D.activate |", "the source is attached before SUSPENDED"),
        ("D.attach S.pause | S.deactivate D.activate |", "the source is paused before SUSPENDED"),
        ("D.attach | S.deactivate | S.detach", "the destination is attached at RESUME"),
        ("D.attach D.open D.pause | S.deactivate | D.unpause", "the destination is paused at RE"),
        ("D.attach | S.deactivate S.detach D.activate |", "S.detach before RESUME"),
        ("D.attach | S.deactivate D.activate | D.deactivate", "is attached at the end"),
        ("D.attach D.probe | S.deactivate D.activate |", "D.probe: the disk is attached"),
        ("| S.deactivate D.activate |", "D.activate: the disk is detached"),
    ],
)
def test_an_order_that_cannot_be_taken_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunOptions.of_playbook({"migration_steps": text})
    assert words in str(caught.value)


def test_steps_that_only_one_guard_allows_run_with_it() -> None:
    # With the guard off an open disk is active at once.
    text = "D.attach D.open | S.deactivate D.activate | S.detach"
    assert RunOptions(steps=text).cases()[0][1] is True
    with pytest.raises(UsageError, match=r"D.activate: the disk is active"):
        RunOptions(steps=text, guard="off")


def test_the_expected_verdict_decides_on_the_guard() -> None:
    assert guards_of("corrupt", "default") == [False]
    assert guards_of("refused", "default") == guards_of("consistent", "default") == [True]
    assert guards_of("consistent", "off") == [False]
    for expected, guard in (("corrupt", "on"), ("refused", "off")):
        with pytest.raises(UsageError, match=f"expect: {expected} with the guard {guard}"):
            guards_of(expected, guard)


def test_a_reopen_for_each_request_does_not_run_on_qcow2() -> None:
    text = "D.attach D.open(each) | S.deactivate | S.detach"
    assert [name for name, *_ in RunOptions(steps=text).planned()] == ["custom-on-s1"]
    with pytest.raises(UsageError, match=r"custom: D.open\(each\) does not run on qcow2"):
        RunOptions(steps=text, image="qcow2")
