"""Runs the five oracles on one record, so that the planted faults run the very same code."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vhdtool.oracle.checks.activation import ActivationOutcome, judge_activation
from vhdtool.oracle.checks.content import ContentOutcome, judge_content
from vhdtool.oracle.checks.leftovers import LeftoversOutcome, judge_leftovers
from vhdtool.oracle.checks.metadata import image_metadata, judge_metadata
from vhdtool.oracle.checks.structure import judge_structure
from vhdtool.oracle.contradictions.blocks import Told, told_by
from vhdtool.oracle.contradictions.claims import claims
from vhdtool.oracle.contradictions.consoles import talk
from vhdtool.oracle.contradictions.epochs import epochs
from vhdtool.oracle.contradictions.life import life
from vhdtool.oracle.evidence.attempts import Attempt, attempts_of
from vhdtool.oracle.evidence.console import Console, read_console
from vhdtool.oracle.evidence.events import Events
from vhdtool.oracle.evidence.held import Held
from vhdtool.oracle.evidence.record import Record
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.readers.image_view import FileView, View, kind_of

ORACLES = ("content", "metadata", "structure", "activation", "leftovers")
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
    missing: tuple[str, ...]
    """Problems that concern the image or the case as a whole."""
    told: Told
    """The blocks that the events say were allocated."""

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
        told = told_by(events, self.told.unit, self.told.placed, self.told.load)
        return replace(self, record=record, attempts=attempts_of(events), told=told)

    def with_held(self, held: tuple[Held, ...]) -> "Evidence":
        return replace(self, record=replace(self.record, held=held))

    def with_snapshots(self, snapshots: tuple[Snapshot, ...]) -> "Evidence":
        return replace(self, record=replace(self.record, snapshots=snapshots))


def gather(record: Record, view: FileView | None) -> Evidence:
    """Derives what several oracles need; `view` None when the image cannot be opened."""
    console = read_console(record.console, record.console_problems)
    meta = image_metadata(view)[0] if view is not None else None
    problems = [problem for problem in (record.case_problem, record.image_problem) if problem]
    if view is None and not record.image_problem:
        problems.append(f"{os.path.basename(str(record.image))}: cannot be opened")
    told = told_by(record.events, *_unit(record))
    return Evidence(record, console, attempts_of(record.events), view, meta, tuple(problems), told)


def _unit(record: Record) -> tuple[int, bool, bool]:
    """Entries of a snapshot's BAT in a block of the events, whether these tell of places, and
    whether they are blocks of the load.

    QEMU places what it allocates for a qcow2 image, and no event says where.
    """
    case = record.case
    if case is None or kind_of(case.image) != "qcow2":
        return 1, True, True
    metas: list[Mapping[str, Any]] = [snapshot.meta for snapshot in record.snapshots]
    sizes = (meta["header"].get("block_bytes") for meta in metas if meta["header"])
    cluster = next((size for size in sizes if isinstance(size, int) and size > 0), 1 << 16)
    unit = max(cluster // 8, 1)
    return unit, False, unit * cluster == case.block_bytes


def content(evidence: Evidence) -> ContentOutcome:
    record = evidence.record
    case = record.case
    missing = tuple(doubt("missing", problem) for problem in evidence.missing)
    if case is None:
        return ContentOutcome(missing)
    outcome = judge_content(case, evidence.console, evidence.view)
    told = evidence.told.first if evidence.told.load else {}
    said = talk(record, evidence.console, evidence.attempts, told)
    return replace(outcome, findings=(*outcome.findings, *said, *missing))


def metadata(evidence: Evidence) -> Outcome:
    record = evidence.record
    outcome = judge_metadata(
        record.snapshots,
        record.snapshot_problems,
        evidence.image_meta,
        record.events,
        evidence.attempts,
        evidence.told,
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
    record, case = evidence.record, evidence.record.case
    outcome = judge_activation(record.events, evidence.attempts, case.guard if case else False)
    if case is None:
        more = [doubt("missing", record.case_problem or "case.json")]
    else:
        more = life(record.events, case)
        more += claims(case, record.events, record.reproduce)
    more += epochs(record.events)
    return replace(outcome, findings=(*outcome.findings, *more))


def leftovers(evidence: Evidence) -> LeftoversOutcome:
    record = evidence.record
    if record.case is None:
        return LeftoversOutcome((doubt("missing", record.case_problem or "case.json"),))
    return judge_leftovers(
        record.case, record.held, record.held_problems, record.events, evidence.attempts
    )


def guarded(name: str, oracle: Callable[[Evidence], _O], evidence: Evidence, empty: _O) -> _O:
    """An oracle that fails on a strange record has vouched for nothing; the others still speak."""
    try:
        return oracle(evidence)
    except Exception as error:  # noqa: BLE001 - see above: it becomes a doubt
        text = f"the {name} oracle failed on this record: {type(error).__name__}: {error}"
        return replace(empty, findings=(doubt("oracle-failed", text[:300]),))


@dataclass(frozen=True)
class Judged:
    """The five outcomes."""

    content: ContentOutcome
    metadata: Outcome
    structure: Outcome
    activation: ActivationOutcome
    leftovers: LeftoversOutcome

    def each(self) -> dict[str, Outcome]:
        return {name: getattr(self, name) for name in ORACLES}


def judge(evidence: Evidence) -> Judged:
    """Never raises."""
    return Judged(
        guarded("content", content, evidence, ContentOutcome()),
        guarded("metadata", metadata, evidence, Outcome()),
        guarded("structure", structure, evidence, Outcome()),
        guarded("activation", activation, evidence, ActivationOutcome()),
        guarded("leftovers", leftovers, evidence, LeftoversOutcome()),
    )
