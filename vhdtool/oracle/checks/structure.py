"""The structure oracle: the strict check of the image layer on the closed image; of a qcow2 image
also its refcounts, and what `qemu-img check` said of them.

It proves nothing about data (the real vhd-util's check passed every image that a bad hand-over
had damaged); but an image that contradicts itself is corrupt whatever else was found.
"""

from collections.abc import Mapping
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image.check.image import check
from vhdtool.oracle.finding import Finding, Outcome, Severity, doubt
from vhdtool.oracle.readers import qcow2
from vhdtool.oracle.readers.image_view import View

HARMLESS = frozenset(
    {"leaked-tail", "leaked-block", "orphan-block", "geometry", "size-disagrees", "size-odd"}
)
"""Unclean by the way an image was made or grew; no footer, bitmap or block is touched."""


def judge_structure(view: View | None, kind: str, told: Mapping[str, Any] | None) -> Outcome:
    """Runs the strict check. What is unclean counts as damage, unless it is only leaked space.

    `told`: what `qemu-img check` said of a qcow2 image when it was recorded.

    Every host closed the image before it was recorded. A footer that is missing, killed or
    unlike its copy is then no leftover of a crash but the work of another writer.
    """
    if view is None:
        return Outcome()
    if kind == "qcow2":
        return _qcow2(view, told)
    if kind != "vhd":
        return Outcome((doubt("not-a-vhd", f"{view.name}: the strict check reads VHDs only"),))
    try:
        report = check(view, mode="strict")
    except (VhdtoolError, OSError) as error:
        return Outcome((doubt("unchecked", str(error)),))
    findings = []
    for item in report.findings:
        severity: Severity = "corrupt"
        if item.severity == "info" or item.code in HARMLESS:
            severity = "info"
        findings.append(
            Finding(item.code, item.message, severity, item.block, item.sectors, item.offset)
        )
    return Outcome.of(findings)


def _qcow2(view: View, told: Mapping[str, Any] | None) -> Outcome:
    """Our own look at tables and refcounts, and what QEMU said. Leaked clusters hurt nobody."""
    findings: list[Finding] = []
    allocated = None
    try:
        findings, allocated = qcow2.examine(view)
    except (VhdtoolError, OSError) as error:
        findings.append(doubt("unchecked", str(error)))
    if told is None:
        findings.append(doubt("missing", "check.json: what qemu-img check said is missing"))
        return Outcome.of(findings)
    if allocated is not None and told.get("allocated-clusters", 0) != allocated:
        text = f"check.json counts {told.get('allocated-clusters', 0)} clusters in use, the image "
        findings.append(doubt("other-check", text + f"has {allocated}"))
    for key, severity in (("corruptions", "corrupt"), ("check-errors", "doubt"), ("leaks", "info")):
        if count := told.get(key, 0):
            text = f"qemu-img check counts {count} {key}"
            findings.append(Finding(f"qemu-img-{key}", text, severity))  # type: ignore[arg-type]
    return Outcome.of(findings)
