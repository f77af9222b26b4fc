"""report.html: one self-contained page, rendered from a template."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from vhdtool.ranges import merge
from vhdtool.report import wording
from vhdtool.report.case import PHASES, Case, Finding
from vhdtool.report.drawing.blackout import Blackout, find_blackouts
from vhdtool.report.drawing.diagram import overview, zoom
from vhdtool.report.drawing.primitives import Drawing
from vhdtool.report.drawing.timeline import MARKED, Timeline, build_timeline, describe, read_time
from vhdtool.report.lenient_json import integer, items, mapping, number, text
from vhdtool.report.output import table
from vhdtool.report.run import Run
from vhdtool.report.wording import milliseconds, percent

FINDINGS = 20
"""Findings listed for one oracle; the rest is counted."""
RANGES = 12
"""Ranges of damaged sectors listed; the rest is counted."""
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
    """A case as the template shows it."""

    anchor: str
    name: str
    case: Case
    summary: str
    drawings: tuple[tuple[str, Drawing], ...]
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...]
    more_findings: int
    damage: str
    links: tuple[tuple[str, str], ...]
    metadata: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def render_page(run: Run) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=PackageLoader("vhdtool.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ms"] = _ms
    environment.filters["percent"] = percent
    names = table.case_names(run.cases)
    views = [_view(case, name) for case, name in zip(run.cases, names, strict=True)]
    limits = (wording.LOCAL_LIMIT, *wording.LIMITS)
    return environment.get_template("report.html.j2").render(
        run=run,
        views=views,
        summaries=wording.summaries(run.cases),
        headline=wording.headline(run.cases, run.as_expected, run.error),
        question=wording.QUESTION,
        verdicts=wording.VERDICTS,
        limits=limits,
        phases=PHASES,
        soak_rows=_soak_rows(run),
        soak_lines=table.soak_lines(run.soak) if run.soak else [],
    )


def _ms(value: float | None) -> str:
    return "–" if value is None else milliseconds(value)


def _soak_rows(run: Run) -> list[dict[str, object]]:
    rows = list[dict[str, object]]()
    for entry in map(mapping, items(run.soak.get("strategies"))):
        blackout, phases = mapping(entry.get("blackout_ms")), mapping(entry.get("phases_ms"))
        rows.append(
            {
                "name": text(entry.get("name"), "?"),
                "guard": "on" if entry.get("guard") is True else "off",
                "expected": text(entry.get("expected"), "?"),
                "met": integer(entry.get("as_expected")) or 0,
                "runs": integer(entry.get("runs")) or 0,
                "bound": number(entry.get("bound_95")),
                "median": number(blackout.get("median")),
                "p90": number(blackout.get("p90")),
                "phases": [number(mapping(phases.get(key)).get("median")) for key in PHASES],
                "margin": number(mapping(entry.get("margin_ms")).get("min")),
            }
        )
    return rows


def _view(case: Case, name: str) -> CaseView:
    notes = list(case.notes)
    timeline = build_timeline(case.events)
    if timeline is None and case.path is not None:
        notes.append("too few events for a drawing")
    findings = case.findings
    listed = [found for oracle in case.oracles for found in oracle.findings[:FINDINGS]]
    return CaseView(
        anchor="case-" + re.sub(r"[^A-Za-z0-9-]", "-", case.directory or case.strategy),
        name=name,
        case=case,
        summary=wording.describe(case.strategy)[1],
        drawings=tuple(_drawings(case, timeline)) if timeline else (),
        steps=tuple(_steps(timeline, case)) if timeline else (),
        findings=tuple(listed),
        more_findings=len(findings) - len(listed),
        damage=damage_text(findings),
        links=tuple(_links(case, metadata=False)),
        metadata=tuple(_links(case, metadata=True)),
        notes=tuple(notes),
    )


def _links(case: Case, metadata: bool) -> Iterable[tuple[str, str]]:
    """(text, relative URL) of the metadata snapshots of a case, or of its other files."""
    for name in case.files:
        if name.startswith("metadata/") == metadata:
            text = name.removeprefix("metadata/").removesuffix(".json") if metadata else name
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
