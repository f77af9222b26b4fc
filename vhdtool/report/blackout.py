"""The blackout of each leg placed on the time axis: last acknowledgement, phases, first after.

The figures that are reported come from verdict.json; this module only finds where to draw them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vhdtool.report.loose import integer, mapping, number, text
from vhdtool.report.timeline import RELEASES, Leg, Timeline

_ACK = re.compile(rb"acked (\d+)\r?\n")


@dataclass(frozen=True)
class Phase:
    """A phase of the blackout, in seconds of the controller's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Blackout:
    """A leg's blackout. `start` is the last acknowledgement, or SUSPENDED where none is known."""

    leg: Leg
    last_ack: float | None
    first_ack: float | None
    start: float
    end: float
    phases: tuple[Phase, ...]


def ack_times(case_dir: Path | None) -> list[float]:
    """When each `acked n` line was complete on a console, in order of arrival."""
    if case_dir is None:
        return []
    try:
        lines = (case_dir / "console.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    chunks, logs = list[tuple[str, int, float]](), dict[str, bytes]()
    for line in lines:
        try:
            entry = mapping(json.loads(line))
        except (ValueError, RecursionError):
            continue
        host, offset = text(entry.get("host")), integer(entry.get("offset"))
        at = number(entry.get("mono"))
        if not host or "/" in host or offset is None or at is None:
            continue
        chunks.append((host, offset, at))
        if host not in logs:
            try:
                logs[host] = (case_dir / f"console-{host}.log").read_bytes()
            except OSError:
                logs[host] = b""
    ends, following = list[int](), dict[str, int]()
    for host, offset, _ in reversed(chunks):
        ends.append(following.get(host, len(logs[host])))
        following[host] = offset
    joined, arrived = b"", list[tuple[int, float]]()
    for (host, offset, at), end in zip(chunks, reversed(ends), strict=True):
        joined += logs[host][offset:end]
        arrived.append((len(joined), at))
    return _stamp([match.end() for match in _ACK.finditer(joined)], arrived)


def _stamp(positions: list[int], arrived: list[tuple[int, float]]) -> list[float]:
    """The arrival time of each position in the joined consoles; both lists ascend."""
    times, chunk = [], 0
    for position in positions:
        while chunk < len(arrived) - 1 and arrived[chunk][0] < position:
            chunk += 1
        times.append(arrived[chunk][1])
    return times


def blackouts(line: Timeline, acks: list[float]) -> list[Blackout]:
    """One Blackout for each leg in which the guest was suspended."""
    found = []
    for leg in line.legs:
        if leg.suspended is None:
            continue
        halted = leg.stopped if leg.stopped is not None else leg.suspended
        switched = leg.switched
        last = max((at for at in acks if at <= halted), default=None)
        first = None
        if switched is not None:
            # After a cancel the guest may be heard before the controller's own event is written.
            heard_from = leg.suspended if leg.resumed is None else switched
            first = min((at for at in acks if at >= heard_from), default=None)
        start = halted if last is None else last
        later = [at for at in (first, switched, leg.suspended) if at is not None]
        end = later[0] if later else leg.suspended
        phases = _phases(line, leg, last, first)
        found.append(Blackout(leg, last, first, start, max(end, start), phases))
    return found


def _phases(line: Timeline, leg: Leg, last: float | None, first: float | None) -> tuple[Phase, ...]:
    suspended, switched = leg.suspended, leg.switched
    assert suspended is not None
    phases = []
    if last is not None:
        phases.append(Phase("quiesce", last, suspended))
    upto = switched if switched is not None else line.end
    released = [
        mark.at
        for mark in line.marks
        if mark.host == leg.source and mark.event in RELEASES and suspended <= mark.at <= upto
    ]
    if released:
        phases.append(Phase("deactivate", suspended, released[0]))
    if leg.completed is not None:
        phases.append(Phase("transfer", suspended, leg.completed))
    reads = [
        mark.at
        for mark in line.marks
        if mark.host == leg.destination
        and mark.event in ("opened", "activated", "unpaused")
        and suspended <= mark.at <= upto
    ]
    if reads:
        before = [at for at in released if at <= reads[-1]]
        phases.append(Phase("activate", before[-1] if before else suspended, reads[-1]))
    if switched is not None and first is not None:
        phases.append(Phase("resume", switched, first))
    return tuple(phases)
