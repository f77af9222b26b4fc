"""The leftovers oracle: a host that the guest has left holds no more than it did before.

A lock, a lease, a session or a device that stays behind harms no byte of this disk. It breaks the
next migration, or lets a second writer in later. So a leftover is no corruption, and a case with
one is not consistent either.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vhdtool.oracle.evidence.attempts import Attempt
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.events import READS, RELEASES, Events
from vhdtool.oracle.evidence.held import KINDS, Held
from vhdtool.oracle.finding import Finding, Outcome, Result, doubt

NAMES = {
    "locks": "a lock", "lease": "the lease", "keys": "a key of a reservation",
    "sockets": "a socket", "processes": "a process", "mounts": "a mount", "loop": "a loop device",
    "nbd": "an nbd device", "dm": "a device-mapper device", "iscsi": "an iSCSI session",
    "files": "a file beside the image",
}  # fmt: skip
FRESH = ("locks", "lease", "keys")
"""What nobody can have of an image that has just been made."""
ELSEWHERE = "elsewhere: "
"""Begins the line of a thing that is another host's: a lock that the file server knows of, a
login at the target."""


@dataclass(frozen=True)
class LeftoversOutcome(Outcome):
    """`looked`: whether the record says what the hosts held; those of schema 1 do not."""

    looked: bool = True

    @property
    def result(self) -> Result:
        """An oracle that has nothing to look at has passed nothing."""
        return super().result if self.looked else "skip"


def judge_leftovers(
    case: Case,
    held: Sequence[Held],
    problems: Sequence[str],
    events: Events,
    attempts: Sequence[Attempt],
) -> LeftoversOutcome:
    """Reads the looks, and the events only to know where the guest was at each of them."""
    if case.schema < 2 and not held and not problems:
        text = "the record is of schema 1, in which nobody looked at what the hosts hold"
        return LeftoversOutcome((Finding("not-looked", text, "info"),), looked=False)
    findings = [doubt("held-torn", problem) for problem in problems]
    if case.schema < 2:
        findings.append(doubt("held-schema", "case.json has schema 1, which has no held/"))
    findings += _strangers(case, held)
    for host in case.hosts:
        findings += _of_host(case, host, held, attempts)
    if events.complete:
        findings += _in_time(held, events, attempts)
        findings += _awake(case, held, events, attempts)
        findings += _epochs(held, events)
    return LeftoversOutcome(tuple(findings))


def guest_at(attempt: Attempt) -> str:
    """The host on which the guest runs when an attempt has ended."""
    return attempt.destination if attempt.moved else attempt.source


def _strangers(case: Case, held: Sequence[Held]) -> Iterator[Finding]:
    for look in held:
        if look.host not in case.hosts:
            yield doubt("held-host", f"{look.piece}: case.json knows no such host")
    images = sorted({look.image for look in held})
    if len(images) > 1:
        yield doubt("held-image", f"held/: looks at {images[0]} and at {images[1]}")


def _of_host(
    case: Case, host: str, held: Sequence[Held], attempts: Sequence[Attempt]
) -> Iterator[Finding]:
    mine = {look.point: look for look in held if look.host == host}
    wanted = ("before", *(f"leg-{attempt.leg}" for attempt in attempts), "after")
    yield from (
        doubt("held-missing", f"held/{host}-{point}.json: missing")
        for point in wanted
        if point not in mine
    )
    yield from (
        doubt("held-leg", f"{look.piece}: no event tells of that leg")
        for look in mine.values()
        if look.point not in wanted
    )
    before = mine.get("before")
    if before is None:
        return
    yield from _fresh(before)
    for attempt in attempts:
        look = mine.get(f"leg-{attempt.leg}")
        # Where the guest runs, a shim has to hold the image.
        if look is not None and guest_at(attempt) != host:
            others = [other for other in case.hosts if other != host]
            yield from _left(before, look, f"after leg {attempt.leg}", others)
    if "after" in mine:
        yield from _left(before, mine["after"], "after the case", [])


def _fresh(before: Held) -> Iterator[Finding]:
    for kind in FRESH:
        for thing in before.things[kind]:
            text = f"{before.piece}: {NAMES[kind]} of an image that was just made: {thing}"
            yield doubt("held-before", text)


def _left(before: Held, look: Held, when: str, others: Sequence[str]) -> Iterator[Finding]:
    """What is in `look` and was not in `before`; `others` are hosts on which a guest may run."""
    name = os.path.basename(look.image)
    for kind in KINDS:
        if kind == "keys" and others:
            continue  # the other host's, which has the guest
        for thing in look.things[kind]:
            theirs = kind == "lease" and thing.startswith(tuple(f"{one}: " for one in others))
            theirs = theirs or (bool(others) and thing.startswith(ELSEWHERE))
            record = kind == "files" and thing == f"{name}.lease"
            if thing not in before.things[kind] and not theirs and not record:
                text = f"{look.host} still has {NAMES[kind]} {when}: {thing}"
                yield Finding(f"left-{kind}", text, "left", who=(look.host,))


def _in_time(
    held: Sequence[Held], events: Events, attempts: Sequence[Attempt]
) -> Iterator[Finding]:
    """Each look was taken when its name says."""
    last = max((e.seq for e in events.items if e.name == "detached"), default=0)
    spans = {"before": (0, 0), "after": (last, events.last_seq)}
    for place, attempt in enumerate(attempts):
        ended = attempt.outcome.seq if attempt.outcome else events.last_seq
        following = attempts[place + 1 :]
        until = following[0].started.seq - 1 if following else events.last_seq
        spans[f"leg-{attempt.leg}"] = (ended, until)
    for look in held:
        first, until = spans.get(look.point, (0, events.last_seq))
        if not first <= look.seq <= until:
            text = f"{look.piece}: taken at seq {look.seq}, not from {first} to {until}"
            yield doubt("held-time", text)


def _awake(
    case: Case, held: Sequence[Held], events: Events, attempts: Sequence[Attempt]
) -> Iterator[Finding]:
    """A look at the host on which the guest runs sees its shim, or it sees nothing at all."""
    looks = {(look.host, look.point): look for look in held}
    for attempt in attempts:
        host = guest_at(attempt)
        look = looks.get((host, f"leg-{attempt.leg}"))
        if look is None:
            continue
        pids = [
            event.pid
            for event in events.items
            if event.host == host and event.seq <= look.seq and event.name in READS
        ]
        shim = pids[-1] if pids else None
        seen = any(thing.startswith(f"pid {shim}:") for thing in look.things["processes"])
        lacks = [] if seen else [f"its shim (pid {shim})"]
        needs = ["sockets", *(["lease"] if case.guard else [])]
        needs += (["keys"] if case.exclusive else ["locks"]) if case.guard else []
        lacks += [NAMES[kind] for kind in needs if not look.things[kind]]
        for what in lacks:
            text = f"{look.piece}: does not see {what}, although the guest runs there"
            yield doubt("held-blind", text)


def _epochs(held: Sequence[Held], events: Events) -> Iterator[Finding]:
    """Whoever took an epoch that no event tells of used the image before the case, or after it."""
    told = [e.epoch for e in events.items if e.name in READS | RELEASES]
    told += [event.integer("released") for event in events.named("refused")]
    epochs = [epoch for epoch in told if epoch is not None]
    if not epochs:
        return
    for look in held:
        right = {"before": min(epochs) - 1, "after": max(epochs)}.get(look.point, look.epoch)
        if look.epoch != right:
            text = f"{look.piece}: the image is at epoch {look.epoch}, the events say {right}"
            yield doubt("held-epoch", text)
