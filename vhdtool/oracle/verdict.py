"""One case, one verdict: error > corrupt > inconclusive > refused, consistent.

`judge_case` derives it from the case directory alone. docs/verdicts.md says what each means.
"""

from pathlib import Path
from typing import Any

from vhdtool.oracle.checks.timing import blackout, nothing
from vhdtool.oracle.coverage import MINIMUM, Coverage, cover
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.evidence.record import Record, load_record, unread
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged, gather, judge
from vhdtool.oracle.planted.plant import Planted, try_oracles
from vhdtool.oracle.readers.image_view import FileView

VERDICTS = ("consistent", "corrupt", "refused", "inconclusive", "error")
Entry = dict[str, Any]


def judge_case(case_dir: Path) -> Entry:
    """The entry of verdict.json's `strategies` for a case directory. Raises nothing for it.

    `margin_ms` is null where no destination served a request, `expected` where case.json is gone.
    """
    try:
        return _judge(case_dir)
    except Exception as error:  # noqa: BLE001 - a judge that stumbles has proved nothing
        reason = f"the judge failed on this record: {type(error).__name__}: {error}"
        return unproved(case_dir, reason[:300])


def unproved(case_dir: Path, reason: str) -> Entry:
    """The entry of a case of which nothing can be read."""
    record = unread(case_dir)
    evidence = gather(record, None)
    entry = _entry(evidence, judge(evidence), Coverage(), Planted())
    return {**entry, "why": f"It proves nothing: {reason}"}


def _judge(case_dir: Path) -> Entry:
    record = load_record(case_dir)
    view = None
    if record.image is not None:
        try:
            view = FileView(record.image)
        except (OSError, TornRecord):
            view = None
    try:
        evidence = gather(record, view)
        judged = judge(evidence)
        coverage, planted = cover(evidence), try_oracles(evidence, judged)
        phases = blackout(evidence.attempts, evidence.console.acks, judged.activation.readings)
        return {**_entry(evidence, judged, coverage, planted), "blackout_ms": phases}
    finally:
        if view is not None:
            view.close()


def _entry(evidence: Evidence, judged: Judged, coverage: Coverage, planted: Planted) -> Entry:
    record = evidence.record
    verdict, why = decide(record, evidence, judged, coverage, planted)
    return {
        **_identity(record),
        "verdict": verdict,
        "why": why,
        "oracles": {name: outcome.as_dict() for name, outcome in judged.each().items()},
        "planted": {"faults": planted.faults, "caught": planted.caught},
        "writes": {
            "acked": len(evidence.console.acks),
            "acked_after_resume": coverage.acked_after,
            "lost": len(judged.content.lost_writes),
            "never_written": judged.content.never_written,
        },
        "blocks_allocated": {
            "before_suspend": coverage.allocated_before,
            "after_resume": coverage.allocated_after,
        },
        "in_flight": coverage.in_flight,
        "active_overlap_epochs": judged.activation.overlap_epochs,
        "margin_ms": judged.activation.margin_ms,
        "blackout_ms": nothing(),
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
    record: Record, evidence: Evidence, judged: Judged, coverage: Coverage, planted: Planted
) -> tuple[str, str]:
    """(verdict, one sentence)."""
    failed = record.case.error if record.case else None
    looked = record.case is not None and record.case.looked
    if failed and not looked:
        return "error", f"The lab failed: {failed}"
    if evidence.console.oops:
        return "error", f"The guest's kernel failed: {evidence.console.oops}"
    proof = [finding for outcome in judged.each().values() for finding in outcome.worst("corrupt")]
    if proof:
        also = f"; a look at the hosts failed too: {failed}" if failed else ""
        return "corrupt", _damage(judged, proof) + also
    if failed:
        return "error", f"A look at the hosts failed, and no oracle proves why: {failed}"
    reasons = [
        finding.message
        for outcome in judged.each().values()
        for finding in outcome.worst("doubt")
    ]  # fmt: skip
    left = [finding.message for finding in judged.leftovers.worst("left")]
    reasons += coverage.doubts
    reasons += [f"a planted fault was missed ({name})" for name in planted.missed]
    if reasons:
        distinct = list(dict.fromkeys(reasons))
        more = f" (and {len(distinct) - 1} more reasons)" if len(distinct) > 1 else ""
        after = f"; {coverage.refused}" if coverage.refused else ""
        left_too = f"; {left[0]}" if left else ""
        return "inconclusive", f"It proves nothing: {distinct[0]}{more}{after}{left_too}"
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        return "inconclusive", f"Nothing is lost, but not all was given up: {left[0]}{more}"
    acks = len(evidence.console.acks)
    notes = "".join(f"; {note}" for note in coverage.notes)
    if coverage.refused:
        return "refused", (
            f"{coverage.refused}; the migration was cancelled and the guest went on at "
            f"{coverage.went_on_at} with {coverage.acked_after} more writes, nothing lost of "
            f"{acks}{notes}"
        )
    return "consistent", (
        f"All {acks} acknowledged writes are there and nothing else is; metadata only grew, and "
        f"no two hosts were active at once{notes}"
    )


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _damage(judged: Judged, proof: list[Finding]) -> str:
    """What the damage is; lost data says more than lost metadata, and that more than a check."""
    lost, strange = len(judged.content.lost_writes), judged.content.never_written
    blocks = {finding.block for finding in judged.metadata.worst("corrupt")} - {None}
    parts = [
        text
        for count, text in (
            (lost, f"{counted(lost, 'acknowledged write')} lost"),
            (strange, f"{counted(strange, 'sector')} of data that was never written"),
            (len(blocks), f"metadata of {counted(len(blocks), 'block')} went back"),
            (judged.activation.overlap_epochs, "two hosts were active at once"),
        )
        if count
    ]
    head = ", ".join(parts)
    return f"{head}; first: {proof[0].message}" if head else proof[0].message


__all__ = ["MINIMUM", "VERDICTS", "decide", "judge_case"]
