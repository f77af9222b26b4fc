"""report.html: one page that needs nothing else, from the template and the run."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from vhdtool.ranges import merge
from vhdtool.report import texts as words
from vhdtool.report.case import PHASES, Case, Finding
from vhdtool.report.drawing.blackout import Blackout, blackouts
from vhdtool.report.drawing.diagram import overview, zoom
from vhdtool.report.drawing.primitives import Drawing
from vhdtool.report.drawing.timeline import MARKED, Timeline, build, describe, read_time
from vhdtool.report.figures import milliseconds, percent
from vhdtool.report.json_fields import integer, items, mapping, number, text
from vhdtool.report.output import table
from vhdtool.report.record import Run

FINDINGS = 20
"""Findings of one oracle that are listed; the rest is counted."""
RANGES = 12
"""Damaged sector ranges that are listed; the rest is counted."""
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
    """A row of the table of events; `at` in ms after SUSPENDED of the same leg, if known."""

    at: float | None
    leg: int
    host: str
    event: str
    detail: str


@dataclass(frozen=True)
class CaseView:
    """What the template shows of one case."""

    anchor: str
    name: str
    case: Case
    what: str
    drawings: tuple[tuple[str, Drawing], ...]
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...]
    more_findings: int
    damage: str
    links: tuple[tuple[str, str], ...]
    snapshots: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def page(run: Run) -> str:
    """The whole report as HTML."""
    environment = Environment(
        loader=PackageLoader("vhdtool.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ms"] = _dashed
    environment.filters["percent"] = percent
    names = table.case_names(run.cases)
    views = [_view(case, name) for case, name in zip(run.cases, names, strict=True)]
    limits = (words.LOCAL_LIMIT, *words.LIMITS)
    return environment.get_template("report.html.j2").render(
        run=run,
        views=views,
        summaries=words.summaries(run.cases),
        headline=words.headline(run.cases, run.as_expected, run.error),
        question=words.QUESTION,
        verdicts=words.VERDICTS,
        limits=limits,
        phases=PHASES,
        soak_rows=_soak_rows(run),
        soak_lines=table.soak_lines(run.soak) if run.soak else [],
    )


def _dashed(value: float | None) -> str:
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
    line = build(case.events)
    if line is None and case.path is not None:
        notes.append("too few events: nothing to draw")
    findings = case.findings
    listed = [found for oracle in case.oracles for found in oracle.findings[:FINDINGS]]
    return CaseView(
        anchor="case-" + re.sub(r"[^A-Za-z0-9-]", "-", case.directory or case.strategy),
        name=name,
        case=case,
        what=words.describe(case.strategy)[1],
        drawings=tuple(_drawings(case, line)) if line else (),
        steps=tuple(_steps(line, case)) if line else (),
        findings=tuple(listed),
        more_findings=len(findings) - len(listed),
        damage=damage(findings),
        links=tuple(_links(case, metadata=False)),
        snapshots=tuple(_links(case, metadata=True)),
        notes=tuple(notes),
    )


def _links(case: Case, metadata: bool) -> Iterable[tuple[str, str]]:
    """(what to show, relative URL) of the record's files, or of its metadata snapshots."""
    for name in case.files:
        if name.startswith("metadata/") == metadata:
            shown = name.removeprefix("metadata/").removesuffix(".json") if metadata else name
            yield shown, quote(f"{case.directory}/{name}")


def _drawings(case: Case, line: Timeline) -> Iterable[tuple[str, Drawing]]:
    switches = blackouts(line, case.acks)
    yield "The whole migration, to scale", overview(line, switches)
    for switch in switches:
        yield _caption(switch, len(switches)), zoom(line, switch)


def _caption(switch: Blackout, count: int) -> str:
    leg = switch.leg
    about = f"Leg {leg.number}, {leg.source} to {leg.destination}: " if count > 1 else ""
    if leg.moved:
        return about + "the blackout" if about else "The blackout"
    reason = f"cancelled: {leg.reason}" if leg.reason else "cancelled"
    if leg.fault and leg.fault != leg.reason:
        reason += f" (fault: {leg.fault})"
    about += reason
    return about[0].upper() + about[1:]


def _steps(line: Timeline, case: Case) -> Iterable[Step]:
    suspended = {leg.number: leg.suspended for leg in line.legs}
    for event in case.events.items:
        if event.name not in STEPS:
            continue
        zero = suspended.get(event.leg)
        at = None if zero is None else (read_time(event) - zero) * 1000
        yield Step(at, event.leg, event.host, event.name, describe(event))


def damage(findings: list[Finding]) -> str:
    """Guest sectors that the findings name: the total, and the first ranges; '' for none."""
    named = [finding.sectors for finding in findings if finding.sectors is not None]
    ranges = merge((first, first + count) for first, count in named)
    if not ranges:
        return ""
    total = sum(end - first for first, end in ranges)
    shown = ", ".join(
        str(first) if end == first + 1 else f"{first}–{end - 1}" for first, end in ranges[:RANGES]
    )
    rest = len(ranges) - RANGES
    more = f" and {rest} ranges more" if rest > 0 else ""
    return f"{total} guest sectors in {len(ranges)} ranges: {shown}{more}"
