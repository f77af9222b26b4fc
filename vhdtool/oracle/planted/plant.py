"""Tries each oracle on copies of the case's own record, with faults planted in them.

A check that checks nothing passes every time. So after a case is judged, faults are planted, and
the oracle must report a *new* finding that names the position of the fault. An oracle that misses
one, or that passes although a required fault could not be planted, makes the case inconclusive.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhdtool.errors import VhdtoolError
from vhdtool.oracle.coverage import cover
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.judge import ORACLES, Evidence, Outcomes, safely
from vhdtool.oracle.planted.activation_faults import activation_faults
from vhdtool.oracle.planted.console_faults import console_faults
from vhdtool.oracle.planted.content_faults import content_faults
from vhdtool.oracle.planted.coverage_faults import coverage_faults
from vhdtool.oracle.planted.event_faults import event_faults
from vhdtool.oracle.planted.fault import Fault
from vhdtool.oracle.planted.image_faults import image_faults
from vhdtool.oracle.planted.leftover_faults import leftover_faults
from vhdtool.oracle.planted.metadata_faults import metadata_faults, snapshot_faults
from vhdtool.oracle.planted.required import required_faults

PLANTERS = (
    content_faults, console_faults, snapshot_faults, metadata_faults, image_faults,
    activation_faults, event_faults, leftover_faults, coverage_faults,
)  # fmt: skip


@dataclass
class Planted:
    """Faults planted and caught; names of the missed ones, and of all."""

    faults: int = 0
    caught: int = 0
    missed: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def try_oracles(evidence: Evidence, outcomes: Outcomes) -> Planted:
    """Plants every fault that this record allows. Never raises."""
    result = Planted()
    known = {**outcomes.by_name(), "coverage": safely(judge_coverage, evidence, Outcome())}
    last: tuple[str, Evidence] | None = None
    findings: list[Finding] = []
    for fault in _all(evidence, outcomes, result):
        result.faults += 1
        result.names.append(f"{fault.oracle}: {fault.name}")
        # Faults that share a copy come one after the other, and it is judged once.
        if last is None or last[0] != fault.oracle or last[1] is not fault.evidence:
            before = set(known[fault.oracle].findings)
            oracle = judge_coverage if fault.oracle == "coverage" else ORACLES[fault.oracle]
            found = safely(oracle, fault.evidence, Outcome()).findings
            findings = [finding for finding in found if finding not in before]
            last = (fault.oracle, fault.evidence)
        if any(finding.severity != "info" and fault.matches(finding) for finding in findings):
            result.caught += 1
        else:
            result.missed.append(f"{fault.oracle}: {fault.name}")
    result.missed += [
        f"{name}: {required} could not be planted"
        for name, required_names in required_faults(evidence).items()
        for required in required_names
        if known[name].result == "pass" and f"{name}: {required}" not in result.names
    ]
    return result


def _all(evidence: Evidence, outcomes: Outcomes, result: Planted) -> Iterator[Fault]:
    for planter in PLANTERS:
        try:
            yield from planter(evidence, outcomes)
        except (VhdtoolError, OSError):
            # The image cannot be read: its oracles have that finding already.
            continue
        except Exception as error:  # noqa: BLE001 - one record must not end the judgement of a run
            result.missed.append(f"{planter.__name__}: {type(error).__name__}: {error}"[:200])


def judge_coverage(evidence: Evidence) -> Outcome:
    """The coverage of a case as the outcome of an oracle, so that faults are planted for it too."""
    return Outcome(tuple(doubt("coverage", text) for text in cover(evidence).doubts))
