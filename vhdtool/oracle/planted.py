"""Do the oracles see anything at all? Each is tried on its own record with faults planted.

A check that checks nothing passes every night. So after a case is judged, faults are planted in
copies of its record, and the oracle must answer with a *new* finding that names the planted
place. An oracle that misses one, or that passed without a place to try it, makes the case
inconclusive.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhdtool.errors import VhdtoolError
from vhdtool.oracle.evidence.held import KINDS
from vhdtool.oracle.faults import Fault, content_faults, image_faults
from vhdtool.oracle.faults_held import held_faults
from vhdtool.oracle.faults_record import activation_faults, event_faults, snapshot_faults
from vhdtool.oracle.finding import Outcome
from vhdtool.oracle.judge import (
    ORACLES,
    Evidence,
    Judged,
    activation,
    content,
    guarded,
    leftovers,
    metadata,
    structure,
)

_PLANTERS = (
    content_faults, snapshot_faults, image_faults, activation_faults, event_faults, held_faults,
)  # fmt: skip

_ALWAYS = {
    "content": ("dropped-ack-early", "dropped-ack-late", "stale-data", "never-written"),
    "metadata": ("entry-gone", "entry-moved", "image-entry-gone", "allocation-untold"),
    "structure": ("overlap", "entry-past-end"),
    "activation": (
        "second-activation-first", "second-activation-last", "epoch-untold", "release-gone",
        "leg-broken",
    ),
    "leftovers": (*(f"{kind}-after" for kind in KINDS), "blind-leg-1", "look-gone"),
}  # fmt: skip
MUST = {
    "vhd": {
        **_ALWAYS,
        "metadata": (*_ALWAYS["metadata"], "bit-gone", "swapped-footer"),
        "structure": (*_ALWAYS["structure"], "foreign-footer"),
    },
    "qcow2": {**_ALWAYS, "structure": (*_ALWAYS["structure"], "qemu-img-says-so")},
}
"""Kind of image -> oracle -> the faults that it must have been tried on before its pass counts."""


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
    for fault in _all(evidence, judged, result):
        result.faults += 1
        result.names.append(f"{fault.oracle}: {fault.name}")
        before = set(outcomes[fault.oracle].findings)
        if any(f not in before and fault.names(f) for f in _again(fault).findings):
            result.caught += 1
        else:
            result.missed.append(f"{fault.oracle}: {fault.name}")
    must = MUST.get(evidence.kind, _ALWAYS)
    result.missed += [
        f"{oracle}: no place to plant {name}"
        for oracle in ORACLES
        for name in must[oracle]
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


def _again(fault: Fault) -> Outcome:
    evidence = fault.evidence
    if fault.oracle == "content":
        return guarded("content", content, evidence, Outcome())
    if fault.oracle == "metadata":
        return guarded("metadata", metadata, evidence, Outcome())
    if fault.oracle == "structure":
        return guarded("structure", structure, evidence, Outcome())
    if fault.oracle == "leftovers":
        return guarded("leftovers", leftovers, evidence, Outcome())
    return guarded("activation", activation, evidence, Outcome())
