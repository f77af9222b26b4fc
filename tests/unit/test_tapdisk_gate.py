"""The gate: requests are served, held or refused; a change waits for those inside."""

import threading
import time

import pytest

from tests.support.shims import in_thread
from tests.support.waiting import wait_for
from vhdtool.errors import StateError
from vhdtool.tapdisk import gate as module
from vhdtool.tapdisk.gate import Gate
from vhdtool.tapdisk.states import GateMode


def test_a_new_gate_refuses_at_once() -> None:
    with pytest.raises(OSError, match="serves no requests"):
        Gate().enter()


def test_held_requests_wait_and_then_are_served() -> None:
    gate = Gate()
    gate.set(GateMode.HOLD)
    thread, result = in_thread(gate.enter)
    wait_for(lambda: gate.waiting)
    assert not result
    gate.set(GateMode.SERVE)
    thread.join(5)
    assert result == [None]


def test_held_requests_fail_when_the_gate_closes() -> None:
    gate = Gate()
    gate.set(GateMode.HOLD)
    thread, result = in_thread(gate.enter)
    wait_for(lambda: gate.waiting)
    gate.set(GateMode.REFUSE)
    thread.join(5)
    assert isinstance(result[0], OSError)


def test_a_change_waits_for_the_requests_inside() -> None:
    gate = Gate()
    gate.set(GateMode.SERVE)
    gate.enter()
    thread, result = in_thread(lambda: gate.set(GateMode.HOLD))
    wait_for(lambda: gate.mode is GateMode.HOLD)
    thread.join(0.05)  # Nothing happens then.
    assert not result
    gate.leave()
    thread.join(5)
    assert result == [GateMode.SERVE]


def test_a_drain_that_times_out_leaves_the_gate_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DRAIN_PATIENCE", 0.05)
    gate = Gate()
    gate.set(GateMode.SERVE)
    gate.enter()
    switched = threading.Event()
    monkeypatch.setattr(gate.fast_path, "set", lambda serves: switched.set())
    waiting, result = in_thread(lambda: (switched.wait(5), gate.enter())[1])
    with pytest.raises(StateError, match="requests did not end"):
        gate.set(GateMode.HOLD)
    waiting.join(5)
    assert result == [None]
    assert gate.mode is GateMode.SERVE


def test_a_gate_that_closes_during_a_drain_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_PATIENCE", 0.2)
    gate = Gate()
    gate.set(GateMode.SERVE)
    gate.enter()
    switched = threading.Event()
    monkeypatch.setattr(gate.fast_path, "set", lambda serves: switched.set())
    thread, result = in_thread(lambda: gate.set(GateMode.HOLD))
    assert switched.wait(5)
    gate.set(GateMode.REFUSE, drain=False)
    thread.join(5)
    assert isinstance(result[0], StateError)
    assert gate.mode is GateMode.REFUSE


def test_a_drain_ends_with_the_last_fast_path_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It signals no completion: to wait for a signal would take all of the patience."""
    monkeypatch.setattr(module, "DRAIN_PATIENCE", 3)
    gate = Gate()
    gate.set(GateMode.SERVE)
    looks = iter((1,))
    monkeypatch.setattr(gate.fast_path, "inside", lambda: next(looks, 0))
    began = time.monotonic()
    assert gate.set(GateMode.HOLD) is GateMode.SERVE
    assert time.monotonic() - began < 1


def test_a_gate_opens_however_many_requests_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_PATIENCE", 0.05)
    gate = Gate()
    gate.set(GateMode.HOLD)
    monkeypatch.setattr(gate.fast_path, "inside", lambda: 1)
    assert gate.set(GateMode.SERVE) is GateMode.HOLD
    assert gate.mode is GateMode.SERVE


def test_a_request_that_is_held_is_counted_until_it_goes_on() -> None:
    gate = Gate()
    gate.set(GateMode.HOLD)
    client, _ = in_thread(gate.enter)
    wait_for(lambda: gate.waiting)
    gate.set(GateMode.SERVE)
    client.join()
    assert gate.waiting == 0
