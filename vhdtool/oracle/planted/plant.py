"""Do the oracles see anything at all? Each is tried on its own record with faults planted.

A check that checks nothing passes every night. So after a case is judged, faults are planted in
copies of its record, and the oracle must answer with a *new* finding that names the planted
place. An oracle that misses one, or that passed without a place to try it, makes the case
inconclusive.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhdtool.errors import VhdtoolError
from vhdtool.oracle.coverage import cover
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.judge import (
    Evidence,
    Judged,
    activation,
    content,
    guarded,
    leftovers,
    metadata,
    structure,
)
from vhdtool.oracle.planted.console_faults import console_faults
from vhdtool.oracle.planted.coverage_faults import coverage_faults
from vhdtool.oracle.planted.event_faults import rule_faults
from vhdtool.oracle.planted.faults import Fault, content_faults
from vhdtool.oracle.planted.image_faults import image_faults
from vhdtool.oracle.planted.leftover_faults import held_faults
from vhdtool.oracle.planted.metadata_faults import metadata_faults
from vhdtool.oracle.planted.record_faults import activation_faults, event_faults, snapshot_faults
from vhdtool.oracle.planted.required import must_plant

_PLANTERS = (
    content_faults, console_faults, snapshot_faults, metadata_faults, image_faults,
    activation_faults, event_faults, rule_faults, held_faults, coverage_faults,
)  # fmt: skip


@dataclass
class Planted:
    """How many faults were planted, how many of them caught, and the names of the others."""

    faults: int = 0
    caught: int = 0
    missed: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def try_oracles(evidence: Evidence, judged: Judged) -> Planted:
    """Plants every fault that has a place in this record. Never raises."""
    result = Planted()
    outcomes = {**judged.each(), "coverage": guarded("coverage", covered, evidence, Outcome())}
    last: tuple[str, Evidence] | None = None
    findings: list[Finding] = []
    for fault in _all(evidence, judged, result):
        result.faults += 1
        result.names.append(f"{fault.oracle}: {fault.name}")
        # Several faults in one copy are planted one after the other.
        if last is None or last[0] != fault.oracle or last[1] is not fault.evidence:
            before = set(outcomes[fault.oracle].findings)
            findings = [finding for finding in _again(fault).findings if finding not in before]
            last = (fault.oracle, fault.evidence)
        if any(finding.severity != "info" and fault.names(finding) for finding in findings):
            result.caught += 1
        else:
            result.missed.append(f"{fault.oracle}: {fault.name}")
    result.missed += [
        f"{oracle}: no place to plant {name}"
        for oracle, names in must_plant(evidence).items()
        for name in names
        if outcomes[oracle].result == "pass" and f"{oracle}: {name}" not in result.names
    ]
    return result


def _all(evidence: Evidence, judged: Judged, result: Planted) -> Iterator[Fault]:
    for planter in _PLANTERS:
        try:
            yield from planter(evidence, judged)
        except (VhdtoolError, OSError):
            # The image cannot be read: there is no healthy place in it, and the oracle said so.
            continue
        except Exception as error:  # noqa: BLE001 - a strange record must not end the judging
            result.missed.append(f"{planter.__name__}: {type(error).__name__}: {error}"[:200])


def covered(evidence: Evidence) -> Outcome:
    """What was done, as an oracle's outcome: it can fall asleep as well."""
    return Outcome(tuple(doubt("coverage", text) for text in cover(evidence).doubts))


def _again(fault: Fault) -> Outcome:
    evidence = fault.evidence
    if fault.oracle == "coverage":
        return guarded("coverage", covered, evidence, Outcome())
    if fault.oracle == "content":
        return guarded("content", content, evidence, Outcome())
    if fault.oracle == "metadata":
        return guarded("metadata", metadata, evidence, Outcome())
    if fault.oracle == "structure":
        return guarded("structure", structure, evidence, Outcome())
    if fault.oracle == "leftovers":
        return guarded("leftovers", leftovers, evidence, Outcome())
    return guarded("activation", activation, evidence, Outcome())
