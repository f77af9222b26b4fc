"""Faults in the holdings of the hosts: each kind of leftover, nothing listed, a file missing."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vhdtool.oracle.evidence.holdings import KINDS, Holdings
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.fault import Fault, finds

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
"""A line of each kind, as a host lists it."""


def leftover_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Faults at the hosts that the guest has left, and at those on which it runs."""
    holdings = evidence.record.holdings
    if not outcomes.leftovers.recorded:
        return
    for held in _without_guest(evidence):
        for kind in KINDS:
            if kind == "keys" and held.point != "after":
                continue
            line = PLANTED[kind].format(host=held.host)
            lines = {**held.lines, kind: (*held.lines[kind], line)}
            yield Fault(
                "leftovers", f"{kind}-{held.point}",
                evidence.with_holdings(_with_lines(holdings, held, lines)),
                finds(f"left-{kind}", line, who=held.host),
            )  # fmt: skip
    for held in _with_guest(evidence):
        nothing: dict[str, tuple[str, ...]] = dict.fromkeys(KINDS, ())
        blind = evidence.with_holdings(_with_lines(holdings, held, nothing))
        yield Fault("leftovers", f"blind-{held.point}", blind, finds("held-blind", "shim"))
    for held in holdings[:1]:
        rest = evidence.with_holdings(tuple(one for one in holdings if one is not held))
        yield Fault("leftovers", "holdings-missing", rest, finds("held-missing", held.file_name))


def _with_lines(
    holdings: tuple[Holdings, ...], held: Holdings, lines: Mapping[str, tuple[str, ...]]
) -> tuple[Holdings, ...]:
    return tuple(replace(one, lines=lines) if one is held else one for one in holdings)


def _without_guest(evidence: Evidence) -> list[Holdings]:
    """The holdings after the case, and those of a host that the guest has left after a leg."""
    left = {
        (host, f"leg-{leg.number}")
        for leg in evidence.legs
        for host in (leg.source, leg.destination)
        if host != leg.guest_host
    }
    return [
        held
        for held in evidence.record.holdings
        if held.point == "after" or (held.host, held.point) in left
    ]


def _with_guest(evidence: Evidence) -> list[Holdings]:
    running = {(leg.guest_host, f"leg-{leg.number}") for leg in evidence.legs}
    return [held for held in evidence.record.holdings if (held.host, held.point) in running]
