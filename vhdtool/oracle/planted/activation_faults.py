"""A second host that activates while an activation of another host lasts."""

from collections.abc import Iterator
from dataclasses import replace

from vhdtool.oracle.checks.activation import Reading
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.event_edits import renumbered, with_free_epochs
from vhdtool.oracle.planted.fault import Fault, Matches


def activation_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """An activation inside the first activation, and one inside the last."""
    overlapping = {who for f in outcomes.activation.of_severity("corrupt") for who in f.who}
    ended = [
        one
        for one in outcomes.activation.readings
        if one.active and one.release is not None and one.release.epoch is not None
    ]
    sound = [one for one in ended if one.event.who not in overlapping] or ended
    sound.sort(key=lambda one: one.epoch)
    for name, readings in (("first", sound[:1]), ("last", sound[-1:])):
        for reading in readings:
            events, who = with_second_activation(evidence, reading)
            yield Fault(
                "activation", f"second-activation-{name}", evidence.with_events(events),
                _overlap(who, reading.epoch + 1),
            )  # fmt: skip


def _overlap(who: str, epoch: int) -> Matches:
    def matches(finding: Finding) -> bool:
        begins = (finding.epochs or (0,))[0] == epoch
        return finding.code == "activation-overlap" and who in finding.who and begins

    return matches


def with_second_activation(evidence: Evidence, during: Reading) -> tuple[Events, str]:
    """(events with an activation of another host inside `during`, that process).

    The process has the pid of the first one if it is free on its host: the same pid on two hosts
    is two processes. The activation takes two epochs, and later epochs rise by two.
    """
    events = evidence.record.events
    hosts = {event.host for event in events.items if event.pid is not None} - {during.event.host}
    host = min(hosts, default="another-host")
    start = during.event
    known = {event.who for event in events.items}
    pid = start.pid or 0
    while f"{host}:{pid}" in known:
        pid += 1
    first, last = during.epoch + 1, during.epoch + 2
    base = replace(start, host=host, pid=pid, side="destination", epoch=first)
    second = [
        replace(base, name="activated", extra={"read_mono": start.mono, "lease": True}),
        replace(base, name="first-request", extra={"request": "write"}),
        replace(base, name="deactivated", epoch=last, extra={"ended": first}),
    ]
    changed: list[Event] = []
    for event in events.items:
        changed.append(with_free_epochs(event, during.epoch))
        if event is start:
            changed += second
    return Events(renumbered(changed).items, events.problems), f"{host}:{pid}"
