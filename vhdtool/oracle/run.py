"""Judges a run: every case directory in it, and whether all verdicts are as expected."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.oracle.evidence.case import image_format
from vhdtool.oracle.evidence.files import names_in, read_file
from vhdtool.oracle.evidence.json_fields import TornRecord, parse_object
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.verdict import Entry, inconclusive_entry, judge_case

SKIPPED = 125
"""Exit code of a run that proves nothing; `git bisect run` then skips the revision."""
_FILES = (
    "case.json", "events.jsonl", "console.jsonl", "metadata", "image.vhd", "image.vhd.packed",
    "reproduce.txt",
)  # fmt: skip

_IN_JUNIT = re.compile(
    r'<property name="[^"]+\.directory" value="([A-Za-z0-9._-]+)"'
    r'|<property name="([A-Za-z0-9._-]+)\.seed"'  # by earlier versions
)


def is_case(path: Path) -> bool:
    """Whether a directory is that of a case; some of its files may be missing."""
    return path.is_dir() and any(os.path.lexists(path / name) for name in _FILES)


def no_case(directory: Path) -> UsageError:
    """The error for a directory that is neither a case nor a run; a directory of runs has some."""
    if not directory.is_dir():
        return UsageError(f"{directory}: no such directory; give a run or a case directory")
    runs = sorted(path.parent for path in directory.glob("*/verdict.json"))
    hint = f"it holds runs, give one of them, such as {runs[-1]}" if runs else "it has no case.json"
    return UsageError(f"{directory}: neither a case nor a run with cases ({hint})")


def judge_run(
    run_dir: Path, known: Mapping[str, Entry] | None = None, error: str | None = None
) -> dict[str, object]:
    """verdict.json of a run directory, or of a single case, derived from the record alone.

    `known`: case directory -> entry that the caller has just judged. `error`: why the run did not
    end as planned, "" if it did; None takes the error of an earlier verdict.json. A case is
    inconclusive if an earlier verdict.json lists it and its directory is gone, or if it was
    requested and has no directory, unless the run has an error.
    Raises UsageError if there is no such directory, or no case in it.
    """
    path = run_dir.resolve()
    if not path.is_dir():
        raise no_case(run_dir)
    asked: list[str] = []
    if is_case(path):
        cases, lost = [path], list[str]()
        run_name, error = path.parent.name, ""
    else:
        cases = [path / name for name in names_in(path) if is_case(path / name)]
        earlier = _earlier(path)
        asked = _texts(earlier.get("asked"))
        if error is None:
            error = " ".join(_texts([earlier.get("error")]))
        wanted = _listed(path) | (set() if error else set(asked))
        lost = sorted(wanted - {case.name for case in cases})
        run_name = path.name
    if not cases and not lost and not error:
        raise no_case(run_dir)
    known = known or {}
    entries = [known.get(case.name) or judge_case(case) for case in cases] + [
        inconclusive_entry(path / name, f"{name} is missing") for name in lost
    ]
    torn = _torn(path)
    if torn is not None:
        entries.append(inconclusive_entry(path / "verdict.json", torn))
    return run_verdict(run_name, cases, entries, error or "", asked)


def run_verdict(
    name: str, cases: Sequence[Path], entries: list[Entry], error: str, asked: Sequence[str]
) -> dict[str, object]:
    """verdict.json. `asked`: the names of all cases that were requested."""
    return {
        "schema": 1,
        "run": name,
        **_machines(cases),
        "error": error or None,
        "asked": list(asked),
        "as_expected": not error and as_expected(entries),
        "strategies": entries,
    }


def as_expected(entries: list[Entry]) -> bool:
    """Whether there is a case, and each case has the expected verdict."""
    return bool(entries) and all(entry["verdict"] == entry["expected"] for entry in entries)


def exit_code(verdict: dict[str, object]) -> int:
    """0: as expected. 1: a case has proof of something else, or of a leftover. 125: no proof."""
    if verdict.get("as_expected") is True:
        return 0
    entries = verdict.get("strategies")
    for entry in entries if isinstance(entries, list) else []:
        got, expected = entry["verdict"], entry["expected"]
        if expected is not None and got not in ("inconclusive", "error", expected):
            return 1
        if got == "inconclusive" and has_leftovers(entry):
            return 1
    return SKIPPED


def has_leftovers(entry: Entry) -> bool:
    """Whether there is proof that a host still held something of the case."""
    result = entry.get("oracles", {}).get("leftovers", {}).get("result")
    return bool(result == "fail")


def _machines(cases: Sequence[Path]) -> dict[str, object]:
    """The fields that all cases of a run share, from the first case.json that can be read."""
    for path in cases:
        case = load_record(path).case
        if case:
            return {
                "hypervisor": case.hypervisor,
                "accelerator": case.accelerator,
                "storage": case.storage,
                "image": image_format(case.image),
            }
    return {"hypervisor": None, "accelerator": None, "storage": None, "image": None}


def _earlier(path: Path) -> Mapping[str, object]:
    """An earlier verdict.json of the run; empty if it cannot be read."""
    try:
        return parse_object(read_file(path / "verdict.json"))
    except TornRecord:
        return {}


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _listed(path: Path) -> set[str]:
    """Cases that the run's verdict.json or junit.xml lists; none if they cannot be read."""
    strategies = _earlier(path).get("strategies")
    entries = strategies if isinstance(strategies, list) else []
    names = {entry.get("case") for entry in entries if isinstance(entry, dict)}
    found = {name for name in names if isinstance(name, str)}
    try:
        text = read_file(path / "junit.xml").decode("utf-8", "replace")
    except TornRecord:
        return found
    return found | {new or old for new, old in _IN_JUNIT.findall(text)}


def _torn(path: Path) -> str | None:
    """Why an existing verdict.json does not list the cases of the run; None if it does."""
    if not os.path.lexists(path / "verdict.json"):
        return None
    try:
        listed = parse_object(read_file(path / "verdict.json")).get("strategies")
    except TornRecord as error:
        return f"verdict.json: {error}; the cases of the run are unknown"
    return None if isinstance(listed, list) else "verdict.json: lists no cases"
