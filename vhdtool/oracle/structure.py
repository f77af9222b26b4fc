"""The structure oracle: the strict check of the image layer on the closed image.

It proves nothing about data (the real vhd-util's check passed every image that a bad hand-over
had damaged); but an image that contradicts itself is corrupt whatever else was found.
"""

from vhdtool.errors import VhdtoolError
from vhdtool.image.check import check
from vhdtool.oracle.finding import Finding, Outcome, Severity, doubt
from vhdtool.oracle.view import View

HARMLESS = frozenset({"leaked-tail", "leaked-block", "geometry", "size-odd"})
"""Unclean by the way an image was made or grew; no footer, bitmap or block is touched."""


def judge_structure(view: View | None, is_vhd: bool) -> Outcome:
    """Runs the strict check. What is unclean counts as damage, unless it is only leaked space.

    Every host closed the image before it was recorded. A footer that is missing, killed or
    unlike its copy is then no leftover of a crash but the work of another writer.
    """
    if view is None:
        return Outcome()
    if not is_vhd:
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
