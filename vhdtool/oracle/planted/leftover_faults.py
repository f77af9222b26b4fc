"""Faults to plant in what the hosts hold: each kind of leftover, a blind look, a lost look."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from vhdtool.oracle.checks.leftovers import guest_at
from vhdtool.oracle.evidence.held import KINDS, Held
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.faults import Fault

PLANTED = {
    "locks": "pid 999999: write lock (OFDLCK) on bytes 300 to 301 of planted",
    "lease": "{host}: pid 999999, epoch 999999",
    "keys": "key 0xbad is registered",
    "sockets": "/planted/disk.nbd (bound)",
    "processes": "pid 999999: planted",
    "mounts": "/planted on /planted",
    "loop": "/dev/loop999 over planted",
    "nbd": "/dev/nbd999 connected by pid 999999",
    "dm": "/dev/mapper/planted",
    "iscsi": "session999 of planted",
    "files": "planted",
}
"""A line of each kind, as a host would write it."""


def held_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """In the looks at the hosts that the guest has left; nothing where nobody looked."""
    held = evidence.record.held
    if not judged.leftovers.looked:
        return
    for look in _last_looks(evidence):
        for kind in KINDS:
            if kind == "keys" and look.point != "after":
                continue
            thing = PLANTED[kind].format(host=look.host)
            things = {**look.things, kind: (*look.things[kind], thing)}
            yield Fault(
                "leftovers", f"{kind}-{look.point}", evidence.with_held(_with(held, look, things)),
                _names(f"left-{kind}", look.host, thing),
            )  # fmt: skip
    for look in _with_guest(evidence):
        nothing: dict[str, tuple[str, ...]] = dict.fromkeys(KINDS, ())
        blind = evidence.with_held(_with(held, look, nothing))
        yield Fault("leftovers", f"blind-{look.point}", blind, _names("held-blind", None, "shim"))
    for look in held[:1]:
        gone = evidence.with_held(tuple(one for one in held if one is not look))
        yield Fault("leftovers", "look-gone", gone, _names("held-missing", None, look.piece))


def _with(held: tuple[Held, ...], look: Held, things: Mapping[str, tuple[str, ...]]) -> tuple[
    Held, ...
]:  # fmt: skip
    return tuple(replace(one, things=things) if one is look else one for one in held)


def _last_looks(evidence: Evidence) -> list[Held]:
    """At each host the one after the case, and those after a leg that took the guest away."""
    left = {
        (host, f"leg-{attempt.leg}")
        for attempt in evidence.attempts
        for host in (attempt.source, attempt.destination)
        if host != guest_at(attempt)
    }
    return [
        look
        for look in evidence.record.held
        if look.point == "after" or (look.host, look.point) in left
    ]


def _with_guest(evidence: Evidence) -> list[Held]:
    with_guest = {(guest_at(attempt), f"leg-{attempt.leg}") for attempt in evidence.attempts}
    return [look for look in evidence.record.held if (look.host, look.point) in with_guest]


def _names(code: str, host: str | None, words: str) -> Callable[[Finding], bool]:
    return lambda finding: (
        finding.code == code and words in finding.message and (host is None or host in finding.who)
    )
