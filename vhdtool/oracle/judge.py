"""Runs the four oracles on one record, so that the planted faults run the very same code."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from vhdtool.oracle.activation import ActivationOutcome, judge_activation
from vhdtool.oracle.console import Console, read_console
from vhdtool.oracle.content import ContentOutcome, judge_content
from vhdtool.oracle.events import Events
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.legs import Attempt, attempts_of
from vhdtool.oracle.metadata import image_metadata, judge_metadata
from vhdtool.oracle.record import Record
from vhdtool.oracle.schedule import SECTOR, Schedule
from vhdtool.oracle.snapshots import Snapshot
from vhdtool.oracle.structure import judge_structure
from vhdtool.oracle.view import FileView, View, kind_of

ORACLES = ("content", "metadata", "structure", "activation")
_O = TypeVar("_O", bound=Outcome)


@dataclass
class Evidence:
    """A record made ready: what was loaded, the image opened, what was derived from both.

    `image_meta` is the closed image's own metadata, None when it cannot be read.
    """

    record: Record
    console: Console
    attempts: list[Attempt]
    view: View | None
    image_meta: Mapping[str, object] | None
    acked_blocks: frozenset[int]
    missing: tuple[str, ...]
    """Problems that concern the image or the case as a whole."""

    @property
    def kind(self) -> str:
        """vhd, qcow2 or raw."""
        case = self.record.case
        return kind_of(case.image) if case is not None else "vhd"

    def with_view(self, view: View) -> "Evidence":
        """The same record with another image."""
        return replace(self, view=view, image_meta=image_metadata(view)[0])

    def with_events(self, events: Events) -> "Evidence":
        record = replace(self.record, events=events)
        return replace(self, record=record, attempts=attempts_of(events))

    def with_snapshots(self, snapshots: tuple[Snapshot, ...]) -> "Evidence":
        return replace(self, record=replace(self.record, snapshots=snapshots))


def gather(record: Record, view: FileView | None) -> Evidence:
    """Derives what several oracles need; `view` None when the image cannot be opened."""
    console = read_console(record.console, record.console_problems)
    acked: set[int] = set()
    if record.case and console.seed == record.case.seed:
        case = record.case
        load = Schedule(case.seed, case.image_bytes // SECTOR, case.block_bytes // SECTOR)
        acked = {load.extent(ack.n)[0] // load.block_sectors for ack in console.acks}
    meta = image_metadata(view)[0] if view is not None else None
    problems = [problem for problem in (record.case_problem, record.image_problem) if problem]
    if view is None and not record.image_problem:
        problems.append(f"{os.path.basename(str(record.image))}: cannot be opened")
    return Evidence(
        record, console, attempts_of(record.events), view, meta, frozenset(acked), tuple(problems)
    )


def content(evidence: Evidence) -> ContentOutcome:
    case = evidence.record.case
    missing = tuple(doubt("missing", problem) for problem in evidence.missing)
    if case is None:
        return ContentOutcome(missing)
    outcome = judge_content(case, evidence.console, evidence.view)
    return replace(outcome, findings=(*outcome.findings, *missing))


def metadata(evidence: Evidence) -> Outcome:
    record = evidence.record
    outcome = judge_metadata(
        record.snapshots,
        record.snapshot_problems,
        evidence.image_meta,
        record.events,
        # What QEMU allocated for a qcow2 image, and where, no event says.
        evidence.acked_blocks if evidence.kind == "vhd" else frozenset(),
    )
    missing = [doubt("missing", problem) for problem in evidence.missing]
    if evidence.view is not None and evidence.image_meta is None and evidence.kind != "raw":
        missing += _unreadable(evidence)
    return Outcome((*outcome.findings, *missing))


def _unreadable(evidence: Evidence) -> list[Finding]:
    """An image that is no VHD any more contradicts every snapshot that saw one."""
    assert evidence.view is not None
    why = image_metadata(evidence.view)[1]
    text = why.message if why else "unreadable"
    if any(snapshot.meta.get("header") for snapshot in evidence.record.snapshots):
        return [
            Finding("image-unreadable", f"the snapshots show an image; the file is none: {text}")
        ]
    return [doubt("image-unreadable", text)]


def structure(evidence: Evidence) -> Outcome:
    outcome = judge_structure(evidence.view, evidence.kind, evidence.record.checked)
    missing = [
        doubt("missing", problem)
        for problem in evidence.missing
        if evidence.view is None
    ]  # fmt: skip
    return Outcome((*outcome.findings, *missing))


def activation(evidence: Evidence) -> ActivationOutcome:
    case = evidence.record.case
    outcome = judge_activation(
        evidence.record.events, evidence.attempts, case.guard if case else False
    )
    if case is None:
        missing = doubt("missing", evidence.record.case_problem or "case.json")
        outcome = replace(outcome, findings=(*outcome.findings, missing))
    return outcome


def guarded(name: str, oracle: Callable[[Evidence], _O], evidence: Evidence, empty: _O) -> _O:
    """An oracle that fails on a strange record has vouched for nothing; the others still speak."""
    try:
        return oracle(evidence)
    except Exception as error:  # noqa: BLE001 - see above: it becomes a doubt
        text = f"the {name} oracle failed on this record: {type(error).__name__}: {error}"
        return replace(empty, findings=(doubt("oracle-failed", text[:300]),))


@dataclass(frozen=True)
class Judged:
    """The four outcomes."""

    content: ContentOutcome
    metadata: Outcome
    structure: Outcome
    activation: ActivationOutcome

    def each(self) -> dict[str, Outcome]:
        return {name: getattr(self, name) for name in ORACLES}


def judge(evidence: Evidence) -> Judged:
    """Never raises."""
    return Judged(
        guarded("content", content, evidence, ContentOutcome()),
        guarded("metadata", metadata, evidence, Outcome()),
        guarded("structure", structure, evidence, Outcome()),
        guarded("activation", activation, evidence, ActivationOutcome()),
    )
