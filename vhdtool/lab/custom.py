"""The strategy of an order that a user gives, refused where it makes no sense.

A run of such an order would prove nothing: the guest would hang, or the record would lack a
snapshot. So the steps are taken on the shim's table of states first, without a shim.
"""

from typing import cast

from vhdtool.errors import StateError, UsageError
from vhdtool.lab.strategies import Leg, Step, Strategy, leg
from vhdtool.tapdisk.states import Operation, ReopenMode, State, StateTable

NAME = "custom"
EXPECTED = ("consistent", "corrupt", "refused")
LONGEST = 40
"""Steps of an order; each takes a request to a shim while the guest waits."""
SERVES = (State.ACTIVE, State.STANDBY)
"""In standby the first request takes the lease."""
FORM = "D.attach | S.deactivate D.activate | S.detach"


def parse_order(text: str) -> Leg:
    """Parse steps before SUSPENDED | between | after RESUME. Raises UsageError."""
    if text.count("|") != 2:
        raise UsageError(
            f"an order has three parts, before SUSPENDED | until RESUME | after it, as in {FORM}"
        )
    order = leg(text)
    steps = (*order.before, *order.switch, *order.after)
    for step in steps:
        _check_words(step)
    if len(steps) > LONGEST:
        raise UsageError(f"{len(steps)} steps; the most are {LONGEST}")
    closings = [step for step in steps if str(step) == "S.deactivate"]
    if len(closings) != 1:
        raise UsageError(
            f"S.deactivate is there {len(closings)} times; the source closes the image once"
        )
    return order


def _check_words(step: Step) -> None:
    """Raises UsageError for an argument or a side that the operation does not have."""
    if step.argument is not None and step.operation != "open":
        raise UsageError(f"{step}: only open has an argument")
    if step.argument is not None and step.argument not in list(ReopenMode):
        raise UsageError(f"{step}: open has the modes {', '.join(ReopenMode)}")
    if step.side == "S" and step.operation in ("attach", "open", "activate", "probe"):
        raise UsageError(f"{step}: the source is active from the start")
    if str(step) == "D.detach":
        raise UsageError("D.detach: the guest needs the destination's disk until its end")


def check_order(order: Leg, guard: bool) -> None:
    """Raises UsageError for a step that is not possible, or where the guest could not run."""
    states = {"S": _active(guard), "D": StateTable(guard)}
    for step in order.before:
        _take(step, states)
    if not states["S"].allows("pause"):
        raise UsageError(
            f"the source is {states['S'].current} before SUSPENDED, while its guest runs; "
            "close it behind the first |"
        )
    for step in order.switch:
        _take(step, states)
    if states["S"].current is State.DETACHED:
        raise UsageError(
            "S.detach before RESUME: the guest could not go on at the source if the destination "
            "is refused; put it behind the second |"
        )
    _must_serve(states["D"], "at RESUME")
    for step in order.after:
        _take(step, states)
    _must_serve(states["D"], "at the end")


def _active(guard: bool) -> StateTable:
    table = StateTable(guard)
    table.change("attach")
    table.change("activate")
    return table


def _take(step: Step, states: dict[str, StateTable]) -> None:
    table = states[step.side]
    if step.operation == "probe":
        if table.current not in SERVES:
            raise UsageError(f"{step}: the disk is {table.current}, and answers no read")
        if table.current is State.STANDBY:
            table.change("first request")
        return
    try:
        table.change(cast(Operation, step.operation))
    except StateError as error:
        why = str(error).removeprefix(f"{step.operation}: ")
        raise UsageError(f"{step}: {why}") from None


def _must_serve(destination: StateTable, when: str) -> None:
    if destination.current not in SERVES:
        raise UsageError(
            f"the destination is {destination.current} {when}, where its guest runs; "
            "it needs D.open, D.activate or D.unpause before"
        )


def custom_strategy(text: str, expected: str) -> Strategy:
    """The strategy of such an order, with the expected verdict. Raises UsageError."""
    order = parse_order(text)
    each = any(step.argument == ReopenMode.EACH for step in order.before + order.switch)
    reason = "D.open(each) does not run on qcow2: a reopen for each request is not done there"
    return Strategy(
        NAME,
        (order,),
        safe=expected == "consistent",
        label="given",
        summary=f"The order that was given: {order}.",
        not_on={"qcow2": reason} if each else {},
    )


def guards_of(expected: str, guard: str) -> list[bool]:
    """The guard settings in which a verdict can be expected. Raises UsageError."""
    if guard == "default":
        return [expected != "corrupt"]
    if expected == "corrupt" and guard == "on":
        raise UsageError("expect: corrupt with the guard on, which refuses such an order")
    if expected == "refused" and guard == "off":
        raise UsageError("expect: refused with the guard off, which lets every order pass")
    return [guard == "on"]
