"""Runs the five oracles on the evidence of one case. verdict.py weighs their outcomes.

An oracle is a function from Evidence to an outcome: the checks of its question, and the
contradictions of the files that it relies on. The planted faults run the very same functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from vhdtool.oracle.checks.activation import ActivationOutcome, check_activation
from vhdtool.oracle.checks.content import ContentOutcome, check_content
from vhdtool.oracle.checks.leftovers import LeftoversOutcome, check_leftovers
from vhdtool.oracle.checks.metadata import check_metadata, image_metadata
from vhdtool.oracle.checks.structure import check_structure
from vhdtool.oracle.contradictions.case_json import check_case_json
from vhdtool.oracle.contradictions.consoles import check_consoles
from vhdtool.oracle.contradictions.epochs import check_epochs
from vhdtool.oracle.contradictions.event_order import check_event_order
from vhdtool.oracle.evidence.allocations import Allocations, allocations_in, units_of
from vhdtool.oracle.evidence.case import image_format
from vhdtool.oracle.evidence.console import Console, read_console
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.holdings import Holdings
from vhdtool.oracle.evidence.legs import Leg, legs_of
from vhdtool.oracle.evidence.record import Record
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, Outcome, Severity, doubt
from vhdtool.oracle.readers.image_view import View

_O = TypeVar("_O", bound=Outcome)


@dataclass
class Evidence:
    """A record, the opened image, and what several oracles derive from both.

    `image_meta`: the metadata of the closed image; None if it cannot be read.
    """

    record: Record
    console: Console
    legs: list[Leg]
    view: View | None
    image_meta: Mapping[str, object] | None
    missing: tuple[str, ...]
    """Problems of the image, or of case.json."""
    allocations: Allocations

    @property
    def image_format(self) -> str:
        """vhd, qcow2 or raw."""
        case = self.record.case
        return image_format(case.image) if case is not None else "vhd"

    def with_view(self, view: View) -> "Evidence":
        """The same record with another image."""
        return replace(self, view=view, image_meta=image_metadata(view)[0])

    def with_events(self, events: Events) -> "Evidence":
        record = replace(self.record, events=events)
        allocations = allocations_in(events, self.allocations.units)
        return replace(self, record=record, legs=legs_of(events), allocations=allocations)

    def with_holdings(self, holdings: tuple[Holdings, ...]) -> "Evidence":
        return replace(self, record=replace(self.record, holdings=holdings))

    def with_snapshots(self, snapshots: tuple[Snapshot, ...]) -> "Evidence":
        return replace(self, record=replace(self.record, snapshots=snapshots))


def prepare(record: Record, view: View | None) -> Evidence:
    """The evidence of a record. `view`: its image; None if it cannot be opened."""
    console = read_console(record.console, record.console_problems)
    meta = image_metadata(view)[0] if view is not None else None
    problems = [problem for problem in (record.case_problem, record.image_problem) if problem]
    units = units_of(record.case, record.snapshots)
    allocations = allocations_in(record.events, units)
    legs = legs_of(record.events)
    return Evidence(record, console, legs, view, meta, tuple(problems), allocations)


def judge_content(evidence: Evidence) -> ContentOutcome:
    record = evidence.record
    missing = tuple(doubt("missing", problem) for problem in evidence.missing)
    if record.case is None:
        return ContentOutcome(missing)
    outcome = check_content(record.case, evidence.console, evidence.view)
    allocations = evidence.allocations
    allocated = allocations.by_block if allocations.units.of_load else {}
    contradictions = check_consoles(record, evidence.console, evidence.legs, allocated)
    return replace(outcome, findings=(*outcome.findings, *contradictions, *missing))


def judge_metadata(evidence: Evidence) -> Outcome:
    record = evidence.record
    outcome = check_metadata(
        record.snapshots,
        record.snapshot_problems,
        evidence.image_meta,
        record.events,
        evidence.legs,
        evidence.allocations,
    )
    missing = [doubt("missing", problem) for problem in evidence.missing]
    if evidence.image_meta is None and evidence.image_format != "raw":
        missing += _unreadable_image(evidence)
    return Outcome((*outcome.findings, *missing))


def _unreadable_image(evidence: Evidence) -> list[Finding]:
    """An image without metadata contradicts every snapshot that has some."""
    if evidence.view is None:
        return []
    why = image_metadata(evidence.view)[1]
    text = why.message if why else "unreadable"
    if any(snapshot.meta.get("header") for snapshot in evidence.record.snapshots):
        text = f"the snapshots show an image, but the file cannot be read as one: {text}"
        return [Finding("image-unreadable", text)]
    return [doubt("image-unreadable", text)]


def judge_structure(evidence: Evidence) -> Outcome:
    record = evidence.record
    outcome = check_structure(evidence.view, evidence.image_format, record.qemu_check)
    missing = evidence.missing if evidence.view is None else ()
    doubts = (doubt("missing", problem) for problem in missing)
    return Outcome((*outcome.findings, *doubts))


def judge_activation(evidence: Evidence) -> ActivationOutcome:
    record, case = evidence.record, evidence.record.case
    outcome = check_activation(record.events, evidence.legs, case.guard if case else False)
    if case is None:
        more = [doubt("missing", record.case_problem or "case.json: missing")]
    else:
        more = check_event_order(record.events, case)
        more += check_case_json(case, record.events, record.reproduce)
    more += check_epochs(record.events)
    return replace(outcome, findings=(*outcome.findings, *more))


def judge_leftovers(evidence: Evidence) -> LeftoversOutcome:
    record = evidence.record
    if record.case is None:
        return LeftoversOutcome((doubt("missing", record.case_problem or "case.json: missing"),))
    return check_leftovers(
        record.case, record.holdings, record.holdings_problems, record.events, evidence.legs
    )


ORACLES: dict[str, Callable[[Evidence], Outcome]] = {
    "content": judge_content,
    "metadata": judge_metadata,
    "structure": judge_structure,
    "activation": judge_activation,
    "leftovers": judge_leftovers,
}


def safely(oracle: Callable[[Evidence], _O], evidence: Evidence, empty: _O) -> _O:
    """Runs an oracle. An exception becomes a doubt, so that the other oracles still judge."""
    try:
        return oracle(evidence)
    except Exception as error:  # noqa: BLE001 - see above: it becomes a doubt
        name = oracle.__name__.removeprefix("judge_")
        text = f"the {name} oracle failed on this record: {type(error).__name__}: {error}"
        return replace(empty, findings=(doubt("oracle-failed", text[:300]),))


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of the five oracles."""

    content: ContentOutcome
    metadata: Outcome
    structure: Outcome
    activation: ActivationOutcome
    leftovers: LeftoversOutcome

    def by_name(self) -> dict[str, Outcome]:
        return {name: getattr(self, name) for name in ORACLES}

    def of_severity(self, severity: Severity) -> list[Finding]:
        """The findings of that severity, of all oracles."""
        return [
            finding
            for outcome in self.by_name().values()
            for finding in outcome.of_severity(severity)
        ]


def run_oracles(evidence: Evidence) -> Outcomes:
    """Never raises."""
    return Outcomes(
        safely(judge_content, evidence, ContentOutcome()),
        safely(judge_metadata, evidence, Outcome()),
        safely(judge_structure, evidence, Outcome()),
        safely(judge_activation, evidence, ActivationOutcome()),
        safely(judge_leftovers, evidence, LeftoversOutcome()),
    )
