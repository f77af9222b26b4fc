"""Blackout and its phases, and what happens to them when stamps are missing."""

import json

from tests.support import oracle_cases
from tests.support.oracle_cases import Lab
from vhdtool.oracle.checks.activation import check_activation
from vhdtool.oracle.checks.timing import PHASES, longest_blackout, no_blackout
from vhdtool.oracle.evidence.console import Ack
from vhdtool.oracle.evidence.events import parse_events
from vhdtool.oracle.evidence.legs import incomplete_legs, legs_of


def times(lab: Lab, acks: list[Ack]) -> dict[str, float]:
    lines = "".join(json.dumps(event) + "\n" for event in lab.events)
    events = parse_events(lines.encode(), None)
    legs = legs_of(events)
    return longest_blackout(legs, acks, check_activation(events, legs, False).readings)


def stamp(lab: Lab, name: str, mono: float, leg: int = 1, **extra: float) -> None:
    """Sets the time of the last event of that name in a leg."""
    event = [one for one in lab.events if one["event"] == name and one["leg"] == leg][-1]
    event.update(mono=mono, **extra)


def stamped() -> Lab:
    lab = oracle_cases.activate()
    for event in lab.events:
        event["mono"] = 1.0
    stamp(lab, "suspended", 10.010, stop_mono=10.004)
    release = next(e for e in lab.events if e["event"] == "deactivated")
    release["mono"] = 10.011
    stamp(lab, "activated", 10.013)
    stamp(lab, "resumed", 10.030, completed_mono=10.028)
    return lab


def test_phases_are_measured_between_the_events_that_bound_them() -> None:
    acks = [Ack(0, 10.0, "alpha"), Ack(1, 10.001, "alpha"), Ack(2, 10.050, "beta")]
    assert times(stamped(), acks) == {
        "total": 49.0, "quiesce": 6.0, "deactivate": 1.0, "transfer": 17.0, "activate": 2.0,
        "resume": 20.0,
    }  # fmt: skip


def test_an_acknowledgement_before_the_event_still_counts() -> None:
    acks = [Ack(0, 10.0, "alpha"), Ack(1, 10.029, "beta")]
    found = times(stamped(), acks)
    assert found["total"] == 29.0
    assert found["resume"] == 0.0


def test_a_late_close_and_early_open_are_outside_the_blackout() -> None:
    lab = oracle_cases.overlap()
    found = times(lab, [Ack(0, 1.0, "alpha"), Ack(1, 900.0, "beta")])
    assert (found["deactivate"], found["activate"]) == (0.0, 0.0)


def test_the_longest_of_several_migrations_is_reported() -> None:
    lab = oracle_cases.back()
    starts = [e["mono"] for e in lab.events if e["event"] == "migrate-started"]
    acks = [
        Ack(0, starts[0], "alpha"), Ack(1, starts[0] + 0.010, "beta"),
        Ack(2, starts[1], "beta"), Ack(3, starts[1] + 0.500, "alpha"),
    ]  # fmt: skip
    assert times(lab, acks)["total"] == 500.0


def test_a_cancelled_attempt_has_the_gap_around_its_suspension() -> None:
    lab = oracle_cases.refused()
    suspended = next(e["mono"] for e in lab.events if e["event"] == "suspended")
    acks = [Ack(0, suspended - 0.002, "alpha"), Ack(1, suspended + 0.003, "alpha")]
    assert times(lab, acks)["total"] == 5.0


def test_what_is_not_known_is_zero() -> None:
    assert times(stamped(), [])["total"] == 0.0
    assert longest_blackout([], [], []) == no_blackout()
    assert set(no_blackout()) == {"total", *PHASES}


def test_problems_of_the_story_are_told() -> None:
    lab = oracle_cases.back()
    lab.events = [
        event for event in lab.events if event["leg"] == 1 and event["event"] != "resumed"
    ]
    for seq, event in enumerate(lab.events, 1):
        event["seq"] = seq
    lines = "".join(json.dumps(event) + "\n" for event in lab.events)
    problems = incomplete_legs(legs_of(parse_events(lines.encode(), None)), 2)
    assert problems == [
        "the events have no leg 2",
        "leg 1 migrated without `suspended` and `resumed`",
    ]


def test_a_late_acknowledgement_of_the_source_ends_nothing() -> None:
    acks = [Ack(0, 10.0, "alpha"), Ack(1, 10.012, "alpha"), Ack(2, 10.050, "beta")]
    assert times(stamped(), acks)["total"] == 38.0
