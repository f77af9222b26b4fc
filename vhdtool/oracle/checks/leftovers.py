"""The leftovers oracle: a host that the guest has left holds no more than before the case.

A lock, a lease, a session or a device that a host still holds does not damage the disk. It breaks
the next migration, or lets a second writer in later. So a leftover is not corruption, but a case
with one is not consistent either.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import READS, RELEASES, Events
from vhdtool.oracle.evidence.holdings import KINDS, Holdings
from vhdtool.oracle.evidence.legs import Leg
from vhdtool.oracle.finding import Finding, Outcome, Result, doubt

NAMES = {
    "locks": "a lock", "lease": "the lease", "keys": "a key",
    "sockets": "a socket", "processes": "a process", "mounts": "a mount", "loop": "a loop device",
    "nbd": "an nbd device", "dm": "a device-mapper device", "iscsi": "an iSCSI session",
    "files": "a file beside the image",
}  # fmt: skip
UNUSED = ("locks", "lease", "keys")
"""Kinds of which an image that was just made has none."""
ELSEWHERE = "elsewhere: "
"""Prefix of a line about another host's thing: a lock that the file server knows, a login at the
target."""


@dataclass(frozen=True)
class LeftoversOutcome(Outcome):
    """`recorded`: whether the record has the holdings of the hosts; records of schema 1 do not."""

    recorded: bool = True

    @property
    def result(self) -> Result:
        """An oracle without evidence is skipped."""
        return super().result if self.recorded else "skip"


def check_leftovers(
    case: Case,
    holdings: Sequence[Holdings],
    problems: Sequence[str],
    events: Events,
    legs: Sequence[Leg],
) -> LeftoversOutcome:
    """Judges the holdings. The events only say where the guest was at each point."""
    if case.schema < 2 and not holdings and not problems:
        text = "the record has schema 1, without the holdings of the hosts"
        return LeftoversOutcome((Finding("not-looked", text, "info"),), recorded=False)
    findings = [doubt("held-torn", problem) for problem in problems]
    if case.schema < 2:
        findings.append(doubt("held-schema", "case.json has schema 1, which has no held/"))
    findings += _unknown(case, holdings)
    for host in case.hosts:
        findings += _of_host(case, host, holdings, legs)
    if events.complete:
        findings += _in_time(holdings, events, legs)
        findings += _blind(case, holdings, events, legs)
        findings += _epochs(holdings, events)
    return LeftoversOutcome(tuple(findings))


def _unknown(case: Case, holdings: Sequence[Holdings]) -> Iterator[Finding]:
    for held in holdings:
        if held.host not in case.hosts:
            yield doubt("held-host", f"{held.file_name}: case.json has no such host")
    images = sorted({held.image for held in holdings})
    if len(images) > 1:
        yield doubt("held-image", f"held/: files for two images, {images[0]} and {images[1]}")


def _of_host(
    case: Case, host: str, holdings: Sequence[Holdings], legs: Sequence[Leg]
) -> Iterator[Finding]:
    mine = {held.point: held for held in holdings if held.host == host}
    required = ("before", *(f"leg-{leg.number}" for leg in legs), "after")
    yield from (
        doubt("held-missing", f"held/{host}-{point}.json: missing")
        for point in required
        if point not in mine
    )
    yield from (
        doubt("held-leg", f"{held.file_name}: the events have no such leg")
        for held in mine.values()
        if held.point not in required
    )
    before = mine.get("before")
    if before is None:
        return
    yield from _in_use(before)
    for leg in legs:
        after_leg = mine.get(f"leg-{leg.number}")
        # The host on which the guest runs holds the image with its shim.
        if after_leg is not None and leg.guest_host != host:
            others = [other for other in case.hosts if other != host]
            yield from _left(before, after_leg, f"after leg {leg.number}", others)
    if "after" in mine:
        yield from _left(before, mine["after"], "after the case", [])


def _in_use(before: Holdings) -> Iterator[Finding]:
    for kind in UNUSED:
        for line in before.lines[kind]:
            text = f"{before.file_name}: {NAMES[kind]} of an image that was just made: {line}"
            yield doubt("held-before", text)


def _left(before: Holdings, after: Holdings, when: str, others: Sequence[str]) -> Iterator[Finding]:
    """Things in `after` that are not in `before`; `others`: hosts on which the guest may run."""
    name = os.path.basename(after.image)
    for kind in KINDS:
        for line in after.lines[kind]:
            theirs = kind == "lease" and line.startswith(tuple(f"{one}: " for one in others))
            theirs = theirs or (bool(others) and line.startswith(ELSEWHERE))
            # The reservation of the host that runs the guest, or its VDI key.
            own_key = kind != "keys" or line.startswith(f"{after.host}: ")
            theirs = theirs or (bool(others) and not own_key)
            record = kind == "files" and line in (f"{name}.lease", f"{name}.keys")
            if line not in before.lines[kind] and not theirs and not record:
                text = f"{after.host} still has {NAMES[kind]} {when}: {line}"
                yield Finding(f"left-{kind}", text, "left", who=(after.host,))


def _in_time(
    holdings: Sequence[Holdings], events: Events, legs: Sequence[Leg]
) -> Iterator[Finding]:
    """Each host's holdings were listed at the point that the file's name says."""
    last = max((e.seq for e in events.items if e.name == "detached"), default=0)
    spans = {"before": (0, 0), "after": (last, events.last_seq)}
    for index, leg in enumerate(legs):
        ended = leg.outcome.seq if leg.outcome else events.last_seq
        following = legs[index + 1 :]
        until = following[0].started.seq - 1 if following else events.last_seq
        spans[f"leg-{leg.number}"] = (ended, until)
    for held in holdings:
        first, until = spans.get(held.point, (0, events.last_seq))
        if not first <= held.seq <= until:
            text = f"{held.file_name}: listed at seq {held.seq}, expected {first} to {until}"
            yield doubt("held-time", text)


def _blind(
    case: Case, holdings: Sequence[Holdings], events: Events, legs: Sequence[Leg]
) -> Iterator[Finding]:
    """The holdings of the host on which the guest runs show its shim, or they show nothing."""
    by_point = {(held.host, held.point): held for held in holdings}
    for leg in legs:
        host = leg.guest_host
        held = by_point.get((host, f"leg-{leg.number}"))
        if held is None:
            continue
        pids = [
            event.pid
            for event in events.items
            if event.host == host and event.seq <= held.seq and event.name in READS
        ]
        shim = pids[-1] if pids else None
        seen = any(line.startswith(f"pid {shim}:") for line in held.lines["processes"])
        lacks = [] if seen else [f"its shim (pid {shim})"]
        needs = ["sockets", *(["lease"] if case.guard else [])]
        needs += (["keys"] if case.exclusive else ["locks"]) if case.guard else []
        lacks += [NAMES[kind] for kind in needs if not held.lines[kind]]
        for what in lacks:
            text = f"{held.file_name}: does not list {what}, although the guest runs on {host}"
            yield doubt("held-blind", text)


def _epochs(holdings: Sequence[Holdings], events: Events) -> Iterator[Finding]:
    """An epoch before the first event's, or after the last one's, means a use without an event."""
    found = [e.epoch for e in events.items if e.name in READS | RELEASES]
    found += [event.integer("released") for event in events.named("refused")]
    epochs = [epoch for epoch in found if epoch is not None]
    if not epochs:
        return
    for held in holdings:
        expected = {"before": min(epochs) - 1, "after": max(epochs)}.get(held.point, held.epoch)
        if held.epoch != expected:
            text = f"{held.file_name}: the image is at epoch {held.epoch}, by the events it is at "
            yield doubt("held-epoch", f"{text}{expected}")
