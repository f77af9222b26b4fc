"""From the outcomes of the oracles to the verdict of a case, and the sentence that explains it.

The first that applies: error, corrupt, inconclusive, refused, consistent. `judge_case` does all of
it for a case directory. docs/verdicts.md says what each verdict means.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vhdtool.oracle.checks.timing import longest_blackout, no_blackout
from vhdtool.oracle.coverage import MINIMUM, Coverage, cover
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.evidence.record import Record, empty_record, load_record
from vhdtool.oracle.judge import Evidence, Outcomes, prepare, run_oracles
from vhdtool.oracle.planted.plant import Planted, try_oracles
from vhdtool.oracle.readers.packed import open_view

VERDICTS = ("consistent", "corrupt", "refused", "inconclusive", "error")
WHOLE = "The rule is broken, the data is whole"
"""Of a corrupt case: two hosts were active at once, and nothing was lost by luck."""
Entry = dict[str, Any]


def judge_case(case_dir: Path) -> Entry:
    """The entry of a case in `strategies` of verdict.json. Never raises.

    `margin_ms` is null if no destination served a request, `expected` if there is no case.json.
    """
    try:
        return _judge(case_dir)
    except Exception as error:  # noqa: BLE001 - a judgement that fails has proved nothing
        reason = f"the judgement failed on this record: {type(error).__name__}: {error}"
        return inconclusive_entry(case_dir, reason[:300])


def inconclusive_entry(case_dir: Path, reason: str) -> Entry:
    """The entry of a case that cannot be read at all."""
    record = empty_record(case_dir)
    evidence = prepare(record, None)
    entry = _entry(evidence, run_oracles(evidence), Coverage(), Planted())
    return {**entry, "why": f"It proves nothing: {reason}"}


def _judge(case_dir: Path) -> Entry:
    record = load_record(case_dir)
    view = None
    if record.image is not None:
        try:
            view = open_view(record.image)
        except (OSError, TornRecord) as error:
            why = f"{record.image.name}: {error}"
            record = replace(record, image=None, image_problem=why)
    try:
        evidence = prepare(record, view)
        outcomes = run_oracles(evidence)
        coverage, planted = cover(evidence), try_oracles(evidence, outcomes)
        readings = outcomes.activation.readings
        blackout = longest_blackout(evidence.legs, evidence.console.acks, readings)
        return {**_entry(evidence, outcomes, coverage, planted), "blackout_ms": blackout}
    finally:
        if view is not None:
            view.close()


def _entry(evidence: Evidence, outcomes: Outcomes, coverage: Coverage, planted: Planted) -> Entry:
    record = evidence.record
    verdict, why = decide(evidence, outcomes, coverage, planted)
    return {
        **_identity(record),
        "verdict": verdict,
        "why": why,
        "oracles": {name: outcome.as_dict() for name, outcome in outcomes.by_name().items()},
        "planted": {"faults": planted.faults, "caught": planted.caught},
        "writes": {
            "acked": len(evidence.console.acks),
            "acked_after_resume": coverage.acked_after,
            "lost": len(outcomes.content.lost_writes),
            "never_written": outcomes.content.never_written,
        },
        "blocks_allocated": {
            "before_suspend": coverage.allocated_before,
            "after_resume": coverage.allocated_after,
        },
        "in_flight": coverage.in_flight,
        "active_overlap_epochs": outcomes.activation.overlap_epochs,
        "margin_ms": outcomes.activation.margin_ms,
        "blackout_ms": no_blackout(),
    }


def _identity(record: Record) -> Entry:
    case = record.case
    entry: Entry = {
        "name": case.strategy if case else record.path.name,
        "case": record.path.name,
        "guard": case.guard if case else None,
        "seed": case.seed if case else None,
        "direction": case.direction if case else None,
        "attempts": case.attempts if case else None,
        "expected": case.expected if case else None,
    }
    return entry


def decide(
    evidence: Evidence, outcomes: Outcomes, coverage: Coverage, planted: Planted
) -> tuple[str, str]:
    """(verdict, the sentence `why`)."""
    case = evidence.record.case
    error = case.error if case else None
    if error and not (case and case.live_check_failed):
        return "error", f"The lab failed: {error}"
    if evidence.console.oops:
        return "error", f"The guest's kernel failed: {evidence.console.oops}"
    if outcomes.of_severity("corrupt"):
        also = f"; a live check of the hosts failed too: {error}" if error else ""
        return "corrupt", _damage(outcomes) + also
    if error:
        return "error", f"A live check of the hosts failed, and no oracle shows damage: {error}"
    doubts = [finding.message for finding in outcomes.of_severity("doubt")]
    doubts += coverage.doubts
    doubts += [f"an oracle missed a planted fault ({name})" for name in planted.missed]
    left = [finding.message for finding in outcomes.of_severity("left")]
    if doubts:
        refused = f"; {coverage.refused}" if coverage.refused else ""
        also = f"; {left[0]}" if left else ""
        return "inconclusive", f"It proves nothing: {_first(doubts, 'reason')}{refused}{also}"
    if left:
        first = _first(left, "leftover")
        return "inconclusive", f"No data is lost, but a host still holds something: {first}"
    acked, notes = len(evidence.console.acks), "".join(f"; {note}" for note in coverage.notes)
    if coverage.refused:
        return "refused", (
            f"{coverage.refused}; the migration was cancelled and the guest continued at "
            f"{coverage.continued_at} with {coverage.acked_after} more writes; all {acked} "
            f"acknowledged writes are on the disk{notes}"
        )
    return "consistent", (
        f"All {acked} acknowledged writes are on the disk and nothing else is, metadata only grew, "
        f"and no two hosts were active at once{notes}"
    )


def _first(texts: list[str], noun: str) -> str:
    """The first text, and how many different ones follow it."""
    more = len(set(texts)) - 1
    return texts[0] + (f" (and {counted(more, f'more {noun}')})" if more else "")


def counted(count: int, what: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _damage(outcomes: Outcomes) -> str:
    """The damage in words: lost data first, then metadata, then overlapping activations."""
    lost, unwritten = len(outcomes.content.lost_writes), outcomes.content.never_written
    blocks = {finding.block for finding in outcomes.metadata.of_severity("corrupt")} - {None}
    parts = [
        text
        for count, text in (
            (lost, f"{counted(lost, 'acknowledged write')} lost"),
            (unwritten, f"{counted(unwritten, 'sector')} of data that was never written"),
            (len(blocks), f"metadata of {counted(len(blocks), 'block')} lost or changed"),
            (outcomes.activation.overlap_epochs, "two hosts were active at once"),
        )
        if count
    ]
    first = outcomes.of_severity("corrupt")[0].message
    data = (outcomes.content, outcomes.metadata, outcomes.structure)
    if outcomes.activation.overlap_epochs and all(one.result == "pass" for one in data):
        return f"{WHOLE}: {', '.join(parts)}; first: {first}"
    return f"{', '.join(parts)}; first: {first}" if parts else first


__all__ = ["MINIMUM", "VERDICTS", "WHOLE", "decide", "judge_case"]
