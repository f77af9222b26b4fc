"""Judges a run: every case directory in it, and what the run as a whole is worth."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.oracle.evidence.files import names_in, read_piece
from vhdtool.oracle.evidence.json_fields import TornRecord, parse_object
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.readers.image_view import kind_of
from vhdtool.oracle.verdict import Entry, judge_case, unproved

SKIPPED = 125
"""Exit code of whatever proves nothing; `git bisect run` then skips the revision."""
_PIECES = (
    "case.json", "events.jsonl", "console.jsonl", "metadata", "image.vhd", "reproduce.txt",
)  # fmt: skip

_IN_JUNIT = re.compile(r'<property name="([A-Za-z0-9._-]+)\.seed"')


def is_case(path: Path) -> bool:
    """Whether a directory looks like a case, even one that lost pieces."""
    return path.is_dir() and any(os.path.lexists(path / piece) for piece in _PIECES)


def judge_run(
    run_dir: Path, known: Mapping[str, Entry] | None = None, error: str | None = None
) -> dict[str, object]:
    """verdict.json of a run directory (or of a single case), derived from the record alone.

    `known`: entries by case directory that the caller has judged already, and just now. `error`:
    why the run did not come to its end, "" where it did; None takes an earlier verdict.json's word.
    A case that an earlier verdict.json lists and that is gone counts as inconclusive, and so does
    one that was asked for, unless the run's error says why it is not there.
    Raises UsageError when there is no such directory, or no case in it.
    """
    path = run_dir.resolve()
    if not path.is_dir():
        raise UsageError(f"{run_dir}: no such directory; give a run or a case directory")
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
        raise UsageError(f"{run_dir}: neither a case nor a run with cases (no case.json in it)")
    known = known or {}
    entries = [known.get(case.name) or judge_case(case) for case in cases] + [
        unproved(path / name, f"{name} is missing") for name in lost
    ]
    torn = _torn(path)
    if torn is not None:
        entries.append(unproved(path / "verdict.json", torn))
    return run_verdict(run_name, cases, entries, error or "", asked)


def run_verdict(
    name: str, cases: Sequence[Path], entries: list[Entry], error: str, asked: Sequence[str]
) -> dict[str, object]:
    """verdict.json. `asked`: the names of all cases that the run was to have."""
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
    """At least one case, and each with the verdict that it should have."""
    return bool(entries) and all(entry["verdict"] == entry["expected"] for entry in entries)


def exit_code(verdict: dict[str, object]) -> int:
    """0 as expected, 1 when a case is proved to be unlike it, 125 when nothing is proved."""
    if verdict.get("as_expected") is True:
        return 0
    entries = verdict.get("strategies")
    for entry in entries if isinstance(entries, list) else []:
        got, expected = entry["verdict"], entry["expected"]
        if expected is not None and got not in ("inconclusive", "error", expected):
            return 1
        if got == "inconclusive" and left_behind(entry):
            return 1
    return SKIPPED


def left_behind(entry: Entry) -> bool:
    """Whether it is proved that a host still held something afterwards."""
    result = entry.get("oracles", {}).get("leftovers", {}).get("result")
    return bool(result == "fail")


def _machines(cases: Sequence[Path]) -> dict[str, object]:
    """What all cases of a run share, from the first case that tells."""
    for path in cases:
        case = load_record(path).case
        if case:
            return {
                "hypervisor": case.hypervisor,
                "accelerator": case.accelerator,
                "storage": case.storage,
                "image": kind_of(case.image),
            }
    return {"hypervisor": None, "accelerator": None, "storage": None, "image": None}


def _earlier(path: Path) -> Mapping[str, object]:
    """The run's verdict.json; empty where it cannot be read."""
    try:
        return parse_object(read_piece(path / "verdict.json"))
    except TornRecord:
        return {}


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _listed(path: Path) -> set[str]:
    """Cases that the run's verdict.json or junit.xml names; none where it cannot be read."""
    strategies = _earlier(path).get("strategies")
    entries = strategies if isinstance(strategies, list) else []
    names = {entry.get("case") for entry in entries if isinstance(entry, dict)}
    found = {name for name in names if isinstance(name, str)}
    try:
        text = read_piece(path / "junit.xml").decode("utf-8", "replace")
    except TornRecord:
        return found
    return found | set(_IN_JUNIT.findall(text))


def _torn(path: Path) -> str | None:
    """A verdict.json that is there and tells nothing: then which cases the run had is unknown."""
    if not os.path.lexists(path / "verdict.json"):
        return None
    try:
        listed = parse_object(read_piece(path / "verdict.json")).get("strategies")
    except TornRecord as error:
        return f"verdict.json: {error}; which cases the run had is not known"
    return None if isinstance(listed, list) else "verdict.json: lists no cases"
