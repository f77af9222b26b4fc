"""Exclusive activation, from nothing but events."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import oracle_cases
from tests.support.oracle_cases import Lab
from vhdtool.oracle.checks.activation import ActivationOutcome, check_activation
from vhdtool.oracle.evidence.events import Events, parse_events
from vhdtool.oracle.evidence.legs import legs_of


def parsed(lab: Lab) -> Events:
    lines = "".join(json.dumps(event) + "\n" for event in lab.events)
    return parse_events(lines.encode(), ("alpha", "beta"))


def outcome_of(lab: Lab, guard: bool = False) -> ActivationOutcome:
    events = parsed(lab)
    return check_activation(events, legs_of(events), guard)


def codes(outcome: ActivationOutcome) -> set[str]:
    return {finding.code for finding in outcome.findings}


class Script:
    """Events written out by hand: `read`, `serve`, `release` of two processes."""

    def __init__(self) -> None:
        self.lab = Lab()
        self.lab.event("migrate-started")
        self.mono = 0.0

    def read(self, host: str, pid: int, epoch: int, name: str = "opened", **extra: Any) -> None:
        extra.setdefault("lease", False)
        self.lab.event(name, host, pid, epoch, read_mono=self.lab.now(), **extra)

    def serve(self, host: str, pid: int, epoch: int) -> None:
        self.lab.event("first-request", host, pid, epoch, request="read")

    def release(self, host: str, pid: int, epoch: int, ended: int | None, **extra: Any) -> None:
        self.lab.event(
            "closed", host, pid, epoch, ended=ended, last_metadata_mono=None, **extra
        )  # fmt: skip


def test_the_safe_orders_pass() -> None:
    for make in oracle_cases.SAFE.values():
        outcome = outcome_of(make())
        assert outcome.result == "pass", outcome.findings
        assert outcome.overlap_epochs == 0
        assert outcome.margin_ms is not None
        assert outcome.margin_ms > 0


def test_an_early_open_that_serves_overlaps_and_names_both() -> None:
    outcome = outcome_of(oracle_cases.overlap())
    [overlap] = outcome.of_severity("corrupt")
    assert overlap.who == ("alpha:11", "beta:22")
    assert overlap.epochs == (2, 3)
    assert outcome.overlap_epochs == 1
    assert outcome.margin_ms is not None
    assert outcome.margin_ms < 0


def test_an_early_open_without_requests_is_no_activation() -> None:
    script = Script()
    script.read("alpha", 1, 1)
    script.serve("alpha", 1, 1)
    script.read("beta", 2, 2)
    script.release("alpha", 1, 3, ended=1)
    script.release("beta", 2, 4, ended=2)
    script.read("beta", 2, 5, "unpaused")
    script.serve("beta", 2, 5)
    script.release("beta", 2, 6, ended=5)
    assert not outcome_of(script.lab).of_severity("corrupt")


def test_the_lease_alone_makes_an_activation() -> None:
    script = Script()
    script.read("alpha", 1, 1, "activated", lease=True)
    script.read("beta", 2, 2, "activated", lease=True)
    script.release("alpha", 1, 3, ended=1)
    script.release("beta", 2, 4, ended=2)
    assert outcome_of(script.lab).overlap_epochs == 1


def test_an_open_activation_lasts_in_whole_events_only() -> None:
    script = Script()
    script.read("alpha", 1, 1)
    script.serve("alpha", 1, 1)
    script.read("beta", 2, 4)
    script.serve("beta", 2, 4)
    script.release("beta", 2, 5, ended=4)
    assert outcome_of(script.lab).of_severity("corrupt")
    script.lab.events[2]["seq"] = 99
    torn = outcome_of(script.lab)
    assert torn.result == "skip"
    assert torn.overlap_epochs == 0


def test_a_proved_overlap_stands_although_events_are_missing() -> None:
    lab = oracle_cases.overlap()
    del lab.events[4:6]
    outcome = outcome_of(lab)
    assert outcome.result == "fail"
    assert outcome.overlap_epochs == 1


def test_reopens_that_are_not_listed_belong_to_the_listed_read() -> None:
    script = Script()
    script.read("beta", 2, 1, implicit=True, mode="each")
    script.serve("beta", 2, 1)
    script.release("beta", 2, 9, ended=7, reopens=6)
    script.read("alpha", 1, 10)
    script.serve("alpha", 1, 10)
    script.release("alpha", 1, 11, ended=10)
    outcome = outcome_of(script.lab)
    assert not outcome.of_severity("corrupt")
    assert "unknown-read" not in codes(outcome)


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["read", "serve", "release"])), max_size=40
)


@settings(deadline=None)
@given(steps)
def test_overlaps_are_those_of_a_plain_count(moves: list[tuple[str, str]]) -> None:
    """Three processes read, serve and release at will; at each epoch the active are counted."""
    script = Script()
    epoch = 0
    opened: dict[str, int] = {}
    spans: list[list[int]] = []
    served: dict[str, list[int]] = {}
    for who, move in moves:
        host, pid = ("alpha", 1) if who == "a" else ("beta", ord(who))
        if move == "serve" and who in opened and who not in served:
            script.serve(host, pid, opened[who])
            served[who] = [opened[who], 0]
            spans.append(served[who])
        elif move != "serve":
            ended = opened.pop(who, None)
            if move == "release" and ended is None:
                continue
            epoch += 1
            served.pop(who, [0, 0])[1] = epoch
            if move == "read":
                script.read(host, pid, epoch)
                opened[who] = epoch
            else:
                script.release(host, pid, epoch, ended=ended)
    last = max((event["epoch"] or 0 for event in script.lab.events), default=0) + 1
    counts = [sum(a <= at < (b or last) for a, b in spans) for at in range(last)]
    outcome = outcome_of(script.lab)
    assert outcome.overlap_epochs == sum(count > 1 for count in counts)
    assert bool(outcome.of_severity("corrupt")) == (outcome.overlap_epochs > 0)


def test_epochs_given_twice_or_falling_are_no_proof_of_anything() -> None:
    lab = oracle_cases.activate()
    releases = [event for event in lab.events if event["event"] == "deactivated"]
    releases[-1]["epoch"] = releases[0]["epoch"]
    outcome = outcome_of(lab)
    assert outcome.result == "skip"
    assert {"epoch-twice", "epoch-falls"} <= codes(outcome)


def test_a_request_of_an_unknown_or_ended_epoch_is_a_doubt() -> None:
    script = Script()
    script.read("alpha", 1, 1)
    script.release("alpha", 1, 2, ended=1)
    script.serve("alpha", 1, 1)
    script.serve("alpha", 1, 77)
    assert {"served-after-release", "unknown-read"} <= codes(outcome_of(script.lab))


def test_with_the_guard_on_a_request_needs_the_lease() -> None:
    lab = oracle_cases.activate()
    activated = [event for event in lab.events if event["event"] == "activated"]
    activated[-1].update(event="opened", mode="plain")
    assert outcome_of(lab, guard=False).result == "pass"
    assert "no-lease" in codes(outcome_of(lab, guard=True))


def test_a_run_in_which_no_one_was_active_proves_nothing() -> None:
    lab = oracle_cases.activate()
    lab.events = [event for event in lab.events if "first-" not in event["event"]]
    for seq, event in enumerate(lab.events, 1):
        event["seq"] = seq
        if event["event"] == "activated":
            event["lease"] = False
    assert {"no-source", "no-destination"} <= codes(outcome_of(lab))


def test_the_margin_is_the_least_of_all_legs() -> None:
    lab = oracle_cases.back()
    reads = [event for event in lab.events if event["event"] == "activated"]
    reads[-1]["read_mono"] -= 5
    outcome = outcome_of(lab)
    assert outcome.margin_ms is not None
    assert outcome.margin_ms < -4000


def test_every_line_that_makes_no_sense_is_named() -> None:
    good = json.dumps(oracle_cases.activate().events[1])
    for bad in ('{"seq": 2}', "{", "[]", good.replace("activated", "activatee"), "nul\0"):
        events = parse_events(f"{good}\n{bad}\n".encode(), None)
        assert not events.complete
        assert "line 2" in events.problems[0]
    assert not parse_events(good.encode(), None).complete, "the last line does not end"
    assert not parse_events(b"", None).complete


def test_a_later_read_ends_an_activation_in_whole_events_only() -> None:
    script = Script()
    script.read("alpha", 1, 1)
    script.serve("alpha", 1, 1)
    script.read("beta", 2, 2)
    script.serve("beta", 2, 2)
    script.read("alpha", 1, 3)
    script.release("beta", 2, 4, ended=2)
    assert outcome_of(script.lab).overlap_epochs == 1
    script.lab.events[2]["seq"] = 99
    assert outcome_of(script.lab).overlap_epochs == 0, "a release may be among what is missing"


def test_a_last_line_that_does_not_end_is_torn() -> None:
    lines = [json.dumps(event) for event in oracle_cases.activate().events[:3]]
    events = parse_events("\n".join(lines).encode(), None)
    assert len(events.items) == 2
    assert events.problems == ("events.jsonl is torn: its last line is not terminated",)


def test_a_time_that_is_no_number_is_torn_wherever_it_stands() -> None:
    for key in ("mono", "wall", "read_mono", "began_mono"):
        for value in ("1.0", 10**400, True, [1]):
            event = {**oracle_cases.activate().events[1], key: value}
            events = parse_events((json.dumps(event) + "\n").encode(), None)
            assert "line 1" in events.problems[0], (key, value)
