"""Do the oracles see anything at all? Each is tried on its own record with faults planted.

A check that checks nothing passes every night. So after a case is judged, faults are planted in
copies of its record, and the oracle must answer with a *new* finding that names the planted
place. An oracle that misses one, or that passed without a place to try it, makes the case
inconclusive.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhdtool.errors import VhdtoolError
from vhdtool.oracle.faults import Fault, content_faults, image_faults
from vhdtool.oracle.faults_record import activation_faults, snapshot_faults
from vhdtool.oracle.finding import Outcome
from vhdtool.oracle.judge import (
    ORACLES,
    Evidence,
    Judged,
    activation,
    content,
    guarded,
    metadata,
    structure,
)

_PLANTERS = (content_faults, snapshot_faults, image_faults, activation_faults)


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
    outcomes = judged.each()
    tried = set()
    for fault in _all(evidence, judged, result):
        tried.add(fault.oracle)
        result.faults += 1
        result.names.append(f"{fault.oracle}: {fault.name}")
        before = set(outcomes[fault.oracle].findings)
        if any(f not in before and fault.names(f) for f in _again(fault).findings):
            result.caught += 1
        else:
            result.missed.append(f"{fault.oracle}: {fault.name}")
    result.missed += [
        f"{name}: no place to plant one"
        for name in ORACLES
        if name not in tried and outcomes[name].result == "pass"
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


def _again(fault: Fault) -> Outcome:
    evidence = fault.evidence
    if fault.oracle == "content":
        return guarded("content", content, evidence, Outcome())
    if fault.oracle == "metadata":
        return guarded("metadata", metadata, evidence, Outcome())
    if fault.oracle == "structure":
        return guarded("structure", structure, evidence, Outcome())
    return guarded("activation", activation, evidence, Outcome())
