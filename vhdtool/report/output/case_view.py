"""A case as the page shows it: drawings, events, findings and links."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from vhdtool.ranges import merge
from vhdtool.report import wording
from vhdtool.report.case import Case, Finding
from vhdtool.report.drawing.blackout import Blackout, find_blackouts
from vhdtool.report.drawing.diagram import overview, zoom
from vhdtool.report.drawing.primitives import Drawing
from vhdtool.report.drawing.timeline import MARKED, Timeline, build_timeline, describe, read_time

FINDINGS = 20
"""Findings listed for one oracle; the rest is counted."""
RANGES = 12
"""Ranges of damaged sectors listed; the rest is counted."""
FEW = ("case.json", "events.jsonl")
"""Files that the page links for a case without a drawing, besides its directory."""
STEPS = (
    "migrate-started",
    "suspended",
    "resumed",
    "migrated",
    "cancelled",
    "attached",
    "detached",
    "first-request",
    "first-write",
    *MARKED,
)


@dataclass(frozen=True)
class Step:
    """A row of the table of events; `at` is in ms after SUSPENDED of the same leg, if known."""

    at: float | None
    leg: int
    host: str
    event: str
    detail: str


@dataclass(frozen=True)
class CaseView:
    """A case as the template shows it; one that is not drawn has its figures and links only."""

    anchor: str
    row: str
    """The anchor of the row in the table of verdicts."""
    name: str
    case: Case
    group: str
    """The key of its group in `wording.GROUPS`."""
    summary: str
    drawn: bool
    drawings: tuple[tuple[str, Drawing], ...]
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...]
    more_findings: int
    damage: str
    links: tuple[tuple[str, str], ...]
    metadata: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def case_view(case: Case, name: str, drawn: bool) -> CaseView:
    """The view of a case; `name` is the one that the tables give it."""
    notes = list(case.notes)
    timeline = build_timeline(case.events) if drawn else None
    if drawn and timeline is None and case.path is not None:
        notes.append("too few events for a drawing")
    findings = case.findings
    listed = [found for oracle in case.oracles for found in oracle.findings[:FINDINGS]]
    return CaseView(
        anchor=case_anchor(case),
        row=row_anchor(case.strategy, case.guard),
        name=name,
        case=case,
        group=wording.group_of(case.verdict).key,
        summary=wording.describe(case)[1],
        drawn=drawn,
        drawings=tuple(_drawings(case, timeline)) if timeline else (),
        steps=tuple(_steps(timeline, case)) if timeline else (),
        findings=tuple(listed) if drawn else (),
        more_findings=len(findings) - len(listed),
        damage=damage_text(findings),
        links=tuple(_links(case) if drawn else _few_links(case)),
        metadata=tuple(_snapshots(case)) if drawn else (),
        notes=tuple(notes),
    )


def case_anchor(case: Case) -> str:
    """The anchor of a case in the report of its run."""
    return "case-" + _identifier(case.directory or case.strategy)


def row_anchor(strategy: str, guard: bool) -> str:
    """The anchor of the row of a strategy and guard setting in the table of verdicts."""
    return f"order-{_identifier(strategy)}-{'on' if guard else 'off'}"


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", name)


def _links(case: Case) -> Iterable[tuple[str, str]]:
    """(text, relative URL) of the files of a case but its metadata snapshots."""
    for name in case.files:
        if not name.startswith("metadata/"):
            yield name, quote(f"{case.directory}/{name}")


def _few_links(case: Case) -> Iterable[tuple[str, str]]:
    for name in case.files:
        if name in FEW:
            yield name, quote(f"{case.directory}/{name}")
    if case.path is not None:
        yield "all files", quote(f"{case.directory}/")


def _snapshots(case: Case) -> Iterable[tuple[str, str]]:
    for name in case.files:
        if name.startswith("metadata/"):
            text = name.removeprefix("metadata/").removesuffix(".json")
            yield text, quote(f"{case.directory}/{name}")


def _drawings(case: Case, timeline: Timeline) -> Iterable[tuple[str, Drawing]]:
    blackouts = find_blackouts(timeline, case.acks)
    yield "The whole migration, to scale", overview(timeline, blackouts)
    for blackout in blackouts:
        yield _caption(blackout, len(blackouts)), zoom(timeline, blackout)


def _caption(blackout: Blackout, count: int) -> str:
    leg = blackout.leg
    about = f"Leg {leg.number}, {leg.source} to {leg.destination}: " if count > 1 else ""
    if leg.moved:
        return about + "the blackout" if about else "The blackout"
    reason = f"cancelled: {leg.reason}" if leg.reason else "cancelled"
    if leg.fault and leg.fault != leg.reason:
        reason += f" (fault: {leg.fault})"
    about += reason
    return about[0].upper() + about[1:]


def _steps(timeline: Timeline, case: Case) -> Iterable[Step]:
    suspended = {leg.number: leg.suspended for leg in timeline.legs}
    for event in case.events.items:
        if event.name not in STEPS:
            continue
        zero = suspended.get(event.leg)
        at = None if zero is None else (read_time(event) - zero) * 1000
        yield Step(at, event.leg, event.host, event.name, describe(event))


def damage_text(findings: list[Finding]) -> str:
    """The damaged guest sectors of the findings: their total and first ranges; '' for none."""
    named = [finding.sectors for finding in findings if finding.sectors is not None]
    ranges = merge((first, first + count) for first, count in named)
    if not ranges:
        return ""
    total = sum(end - first for first, end in ranges)
    shown = ", ".join(
        str(first) if end == first + 1 else f"{first}–{end - 1}" for first, end in ranges[:RANGES]
    )
    rest = len(ranges) - RANGES
    more = f" and {rest} more ranges" if rest > 0 else ""
    return f"{total} guest sectors in {len(ranges)} ranges: {shown}{more}"
