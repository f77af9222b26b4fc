"""junit.xml: a testcase for each case, for CI systems.

It uses only elements and attributes of the Ant-style JUnit schema, which is stricter than most
readers: properties belong to the suite, and a testcase has one failure or error.
"""

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime

from vhdtool.report.case import PHASES, Case
from vhdtool.report.run import Run

# XML 1.0 cannot hold these, not even as character references.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(value: str) -> str:
    """Replace characters that XML cannot hold by U+FFFD."""
    return _ILLEGAL.sub("\ufffd", value)


def junit_xml(run: Run, table: str = "") -> bytes:
    """Return the document as UTF-8; `table`, the terminal's output, becomes system-out."""
    counts = [outcome(case) for case in run.cases] + (["error"] if run.error else [])
    root = ET.Element("testsuites")
    suite = ET.SubElement(
        root,
        "testsuite",
        name="migration",
        package="vhdtool",
        id="0",
        timestamp=_timestamp(run),
        hostname="localhost",
        tests=str(len(counts)),
        failures=str(counts.count("failure")),
        errors=str(counts.count("error")),
        time=f"{sum(duration(case) for case in run.cases):.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(run):
        ET.SubElement(properties, "property", name=xml_text(name), value=xml_text(value))
    for case in run.cases:
        _testcase(suite, case)
    if run.error:
        _run_error(suite, run.error)
    ET.SubElement(suite, "system-out").text = xml_text(table)
    ET.SubElement(suite, "system-err").text = xml_text("\n".join(run.notes))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def outcome(case: Case) -> str:
    """'' for as expected, 'error' where the case proves nothing, else 'failure'.

    An inconclusive case with leftovers is a failure: leftovers are proved.
    """
    if case.verdict in ("inconclusive", "error"):
        left = any(one.name == "leftovers" and one.result == "fail" for one in case.oracles)
        return "failure" if left and case.verdict == "inconclusive" else "error"
    return "" if case.as_expected else "failure"


def duration(case: Case) -> float:
    """Seconds from the first event to the last; 0 without events."""
    times = [event.mono for event in case.events.items]
    return max(times) - min(times) if times else 0.0


def _timestamp(run: Run) -> str:
    walls = [
        at
        for case in run.cases
        for event in case.events.items[:1]
        if (at := event.number("wall")) is not None
    ]
    try:
        moment = datetime.fromtimestamp(min(walls), UTC) if walls else datetime.now(UTC)
    except (OverflowError, OSError, ValueError):
        moment = datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def _properties(run: Run) -> list[tuple[str, str]]:
    pairs = [
        ("run", run.name),
        ("hypervisor", run.hypervisor),
        ("accelerator", run.accelerator),
        ("storage", run.storage),
        ("image", run.image),
        ("as_expected", str(run.as_expected).lower()),
    ]
    for case in run.cases:
        figures: list[tuple[str, object]] = [
            ("guard", case.guard_setting),
            ("seed", case.seed),
            ("expected", case.expected),
            ("verdict", case.verdict),
            ("attempts", case.attempts),
            ("writes.acked", case.writes["acked"]),
            ("writes.lost", case.writes["lost"]),
            ("margin_ms", case.margin_ms),
            *((f"blackout_ms.{key}", case.blackout_ms[key]) for key in ("total", *PHASES)),
        ]
        name = case.directory or case.strategy
        pairs += [(f"{name}.{key}", str(value)) for key, value in figures if value is not None]
    return pairs


def _testcase(suite: ET.Element, case: Case) -> None:
    element = ET.SubElement(
        suite,
        "testcase",
        name=xml_text(case.directory or case.strategy),
        classname=xml_text(f"vhdtool.migration.{case.strategy}"),
        time=f"{duration(case):.3f}",
    )
    kind = outcome(case)
    if not kind:
        return
    message = f"expected {case.expected}, got {case.verdict}: {case.why}"
    trouble = ET.SubElement(element, kind, message=xml_text(message), type=xml_text(case.verdict))
    trouble.text = xml_text("\n".join(_details(case)))


def _run_error(suite: ET.Element, error: str) -> None:
    """Add a testcase for the run itself, which did not finish."""
    element = ET.SubElement(
        suite, "testcase", name="run", classname="vhdtool.migration", time="0.000"
    )
    ET.SubElement(element, "error", message=xml_text(error), type="error").text = xml_text(error)


def _details(case: Case) -> list[str]:
    lines = [
        f"{finding.oracle}: {finding.code}: {finding.message}" for finding in case.findings[:50]
    ]
    if case.error:
        what, log = case.error
        lines += [what, *log]
    lines += [f"note: {note}" for note in case.notes]
    if case.reproduce:
        lines.append(f"repeat it with: {case.reproduce}")
    return lines
