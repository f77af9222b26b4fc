"""junit.xml: a testcase for each case, for CI systems.

A test's name has no seed, so that a CI sees one test from night to night. The elements are those
that Jenkins' xUnit plugin accepts, which is stricter than most readers: a testcase has no
properties, and at most one of error (the lab failed, or nothing is proved), failure (the verdict
is not the expected one) and skipped (the run ended before it).
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from vhdtool.report.case import PHASES, Case
from vhdtool.report.run import Run

# XML 1.0 cannot hold these, not even as character references.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ASKED = re.compile(r"(.+)-(on|off)-s([0-9]+)")
PACKAGE = "vhdtool.migration"
ATTACHED = ("reproduce.txt", "events.jsonl", "console-", "qemu-", "shim-", "testinfra-")
"""Beginnings of the names of the files that a CI shows beside a test."""
Keys = dict[str, str]
"""Directory of a case -> the name of its test."""


def xml_text(value: str) -> str:
    """Replace characters that XML cannot hold by U+FFFD."""
    return _ILLEGAL.sub("\ufffd", value)


def junit_xml(run: Run, table: str = "") -> bytes:
    """Return the document as UTF-8; `table`, the terminal's output, becomes system-out."""
    left = [name for name in run.asked if name not in {case.directory for case in run.cases}]
    names = test_names([*(_label(case) for case in run.cases), *left])
    counts = [outcome(case) for case in run.cases]
    counts += ["skipped" if run.error else "error" for _ in left]
    trouble = _trouble(run, counts)
    counts += [trouble[0]] if trouble else []
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
        skipped=str(counts.count("skipped")),
        time=f"{sum(duration(case) for case in run.cases):.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(run, names):
        ET.SubElement(properties, "property", name=xml_text(name), value=xml_text(value))
    for case in run.cases:
        _testcase(suite, run, case, names[_label(case)])
    for one in left:
        element = _element(suite, one, names[one], 0.0)
        message = "the run ended before it" if run.error else "the case has no verdict"
        ET.SubElement(element, "skipped" if run.error else "error", message=message)
    if trouble:
        kind, message = trouble
        element = ET.SubElement(suite, "testcase", name="run", classname=PACKAGE, time="0.000")
        _problem(element, kind, message, "error", [message])
    ET.SubElement(suite, "system-out").text = xml_text(table)
    ET.SubElement(suite, "system-err").text = xml_text("\n".join(run.notes))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def test_names(cases: list[str]) -> Keys:
    """{case: `overlap[guard=off]`}, with the number of the repeat where a case has several.

    >>> test_names(["overlap-off-s3", "overlap-off-s4"])["overlap-off-s4"]
    'overlap[guard=off,repeat=2]'
    """
    parts = {name: _ASKED.fullmatch(name) for name in cases}
    base = {name: f"{m[1]}[guard={m[2]}" if m else name for name, m in parts.items()}
    total, nth = Counter(base.values()), Counter[str]()
    names = {}
    for name in sorted(base, key=lambda one: int(m[3]) if (m := parts[one]) else 0):
        nth[base[name]] += 1
        repeat = f",repeat={nth[base[name]]}" if total[base[name]] > 1 else ""
        names[name] = f"{base[name]}{repeat}]" if parts[name] else name
    return names


def _label(case: Case) -> str:
    """The directory of a case, or where that is not known what would be its name."""
    guard = "on" if case.guard else "off"
    return case.directory or f"{case.strategy}-{guard}-s{case.seed or 0}"


def outcome(case: Case) -> str:
    """'' for as expected, 'error' where the case proves nothing, else 'failure'.

    An inconclusive case with leftovers is a failure: leftovers are proved.
    """
    if case.verdict in ("inconclusive", "error"):
        left = any(one.name == "leftovers" and one.result == "fail" for one in case.oracles)
        return "failure" if left and case.verdict == "inconclusive" else "error"
    return "" if case.as_expected else "failure"


def _trouble(run: Run, counts: list[str]) -> tuple[str, str] | None:
    """(kind, message) of what is wrong with the run itself, if a case does not say it."""
    if run.error:
        return "error", run.error
    if not run.cases and not run.asked:
        return "error", "the run has no cases: it proves nothing"
    if not run.as_expected and not any(counts):
        return (
            "error",
            "verdict.json says that the run is not as expected, and each case that it is",
        )
    return None


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


def _properties(run: Run, names: Keys) -> list[tuple[str, str]]:
    """Of the run, and of each test its seed and the directory of its record."""
    pairs = [
        ("run", run.name),
        ("hypervisor", run.hypervisor),
        ("accelerator", run.accelerator),
        ("storage", run.storage),
        ("image", run.image),
        ("as_expected", str(run.as_expected).lower()),
    ]
    for case in run.cases:
        test = names[_label(case)]
        pairs += [(f"{test}.seed", str(case.seed))] if case.seed is not None else []
        pairs += [(f"{test}.directory", case.directory)] if case.directory else []
    return pairs


def _element(suite: ET.Element, directory: str, name: str, seconds: float) -> ET.Element:
    """A testcase. Its class has the guard and the repeat too: Jenkins keeps one file of a name
    for each class, so that the attachments of two cases would be taken for the same."""
    words = re.sub(r"-s[0-9]+$", "", directory)
    repeat = name.partition("repeat=")[2].rstrip("]")
    classname = f"{PACKAGE}.{words}" + (f".{repeat}" if repeat else "")
    return ET.SubElement(
        suite,
        "testcase",
        name=xml_text(name),
        classname=xml_text(classname),
        time=f"{seconds:.3f}",
    )


def _testcase(suite: ET.Element, run: Run, case: Case, name: str) -> None:
    element = _element(suite, _label(case), name, duration(case))
    kind = outcome(case)
    if kind:
        message = f"expected {case.expected}, got {case.verdict}: {case.why}"
        _problem(element, kind, message, case.verdict, _details(case))
    lines = [f"{case.verdict}, expected {case.expected}: {case.why}", *_figures(case)]
    lines += [f"[[ATTACHMENT|{path}]]" for path in _attachments(run, case)]
    ET.SubElement(element, "system-out").text = xml_text("\n".join(lines))


def _problem(element: ET.Element, kind: str, message: str, type_: str, lines: list[str]) -> None:
    trouble = ET.SubElement(element, kind, message=xml_text(message), type=xml_text(type_))
    trouble.text = xml_text("\n".join(lines))


def _figures(case: Case) -> Iterator[str]:
    figures: list[tuple[str, object]] = [
        ("order", case.given or None),
        ("seed", case.seed),
        ("attempts", case.attempts),
        *((f"writes.{key}", value) for key, value in case.writes.items()),
        *((f"blocks_allocated.{key}", value) for key, value in case.blocks.items()),
        ("margin_ms", case.margin_ms),
        *((f"blackout_ms.{key}", case.blackout_ms[key]) for key in ("total", *PHASES)),
        ("planted.faults", case.planted),
        ("planted.caught", case.caught),
    ]
    yield from (f"{key}: {value}" for key, value in figures if value is not None)
    if case.reproduce:
        yield f"repeat it with: {case.reproduce}"


def _attachments(run: Run, case: Case) -> Iterator[str]:
    """Paths of a case's small files, from where the run was begun, as a CI looks for them.

    A record that is not below that directory is named from its own: a CI does not reach it.
    """
    here = Path.cwd()
    base = run.path.relative_to(here) if run.path.is_relative_to(here) else Path()
    for beginning in ATTACHED:
        for name in case.files:
            if name.startswith(beginning):
                yield (base / case.directory / name).as_posix()


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
