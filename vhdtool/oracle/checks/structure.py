"""The structure oracle: the strict check of the closed image.

Of a qcow2 image it counts the refcounts itself, and takes the recorded report of `qemu-img check`.
A sound structure proves nothing about the data: the real `vhd-util check` passed every image that a
bad hand-over had damaged. But an image that contradicts itself is corrupt.
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
"""Findings of the strict check that come from how an image was made or grew: no damage."""


def check_structure(view: View | None, kind: str, qemu_check: Mapping[str, Any] | None) -> Outcome:
    """Runs the strict check. Every finding is damage, except leaked space.

    `kind`: vhd, qcow2 or raw; `qemu_check`: the recorded report of `qemu-img check` on a qcow2
    image. All hosts had closed the image before it was recorded. So a footer that is missing,
    killed or unlike its copy is not the trace of a crash, but of another writer.
    """
    if view is None:
        return Outcome()
    if kind == "qcow2":
        return _qcow2(view, qemu_check)
    if kind != "vhd":
        return Outcome((doubt("not-a-vhd", f"{view.name}: the strict check needs a VHD"),))
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


def _qcow2(view: View, qemu_check: Mapping[str, Any] | None) -> Outcome:
    """Checks tables and refcounts, and adds the findings of QEMU. Leaked clusters are no damage."""
    findings: list[Finding] = []
    allocated = None
    try:
        findings, allocated = qcow2.examine(view)
    except (VhdtoolError, OSError) as error:
        findings.append(doubt("unchecked", str(error)))
    if qemu_check is None:
        findings.append(doubt("missing", "check.json: missing or torn"))
        return Outcome.of(findings)
    if allocated is not None and qemu_check.get("allocated-clusters", 0) != allocated:
        text = f"check.json has {qemu_check.get('allocated-clusters', 0)} allocated clusters, "
        findings.append(doubt("other-check", text + f"the image has {allocated}"))
    for key, severity in (("corruptions", "corrupt"), ("check-errors", "doubt"), ("leaks", "info")):
        if count := qemu_check.get(key, 0):
            text = f"qemu-img check found {count} {key}"
            findings.append(Finding(f"qemu-img-{key}", text, severity))  # type: ignore[arg-type]
    return Outcome.of(findings)
