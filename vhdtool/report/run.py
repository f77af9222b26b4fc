"""Load a run directory: verdict.json, and the files of each case.

Only an unreadable verdict.json is an error. Another file that is missing or torn becomes a note
on its case.
"""

import dataclasses
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.lab.strategies import STRATEGIES
from vhdtool.oracle.evidence.console import read_console
from vhdtool.oracle.evidence.record import load_record
from vhdtool.report import wording
from vhdtool.report.case import Case, parse_entry
from vhdtool.report.lenient_json import items, mapping, text
from vhdtool.report.software import NAME as SOFTWARE

_LINKED = (
    "case.json", "events.jsonl", "console.jsonl", "image.vhd", "image.vhd.packed", "image.qcow2",
    "image.qcow2.packed", "check.json", "reproduce.txt",
)  # fmt: skip
PROBLEMS = 3
"""Problems listed for one file; a torn file may have thousands."""
_LINKED_GLOBS = ("*.log", "metadata/*.json", "held/*.json")


@dataclass(frozen=True)
class Run:
    """A run: its directory and environment, and its cases ordered by strategy."""

    path: Path
    name: str
    hypervisor: str
    accelerator: str
    storage: str
    image: str
    claims_as_expected: bool
    cases: tuple[Case, ...]
    soak: dict[str, Any]
    notes: tuple[str, ...] = ()
    software: str = ""
    """The version and commit of vhdtool that made the run; empty for an old record."""
    error: str = ""
    """Why the run did not finish."""
    asked: tuple[str, ...] = ()
    """The cases that were requested, by the names of their directories."""

    @property
    def as_expected(self) -> bool:
        """Whether verdict.json says so and every case agrees; False for a run without cases."""
        agreed = bool(self.cases) and all(case.as_expected for case in self.cases)
        return self.claims_as_expected and agreed and not self.error


def load_verdict(run_dir: Path) -> dict[str, Any]:
    """Read verdict.json of `run_dir`. Raises UsageError unless it is a JSON object."""
    path = run_dir / "verdict.json"
    try:
        verdict = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); give the directory of a run, such as "
            "runs/latest, or derive the verdict: vhdtool judge DIR --json > DIR/verdict.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not JSON ({error}); derive it again: "
            "vhdtool judge DIR --json > DIR/verdict.json"
        ) from error
    if not isinstance(verdict, dict) or not isinstance(verdict.get("strategies"), list):
        raise UsageError(
            f"{path}: has no list `strategies`; derive it again: "
            "vhdtool judge DIR --json > DIR/verdict.json"
        )
    return verdict


def load_run(run_dir: Path, verdict: dict[str, Any] | None = None) -> Run:
    """Load a run; `verdict` replaces the contents of verdict.json.

    Raises UsageError as `load_verdict` does.
    """
    run_dir = run_dir.resolve()
    verdict = verdict or load_verdict(run_dir)
    notes = list[str]()
    entries = [entry for entry in verdict["strategies"] if isinstance(entry, dict)]
    if len(entries) < len(verdict["strategies"]):
        notes.append("verdict.json: some entries of `strategies` are not objects; left out")
    cases = [parse_entry(entry) for entry in entries]
    soak = dict[str, Any]()
    if (run_dir / "soak.json").exists():
        soak = _object(run_dir / "soak.json", notes)
    made_with = _software(run_dir, notes)
    return Run(
        path=run_dir,
        name=text(verdict.get("run")) or run_dir.name,
        hypervisor=text(verdict.get("hypervisor"), "?"),
        accelerator=text(verdict.get("accelerator"), "?"),
        storage=text(verdict.get("storage"), "?"),
        image=text(verdict.get("image"), "?"),
        claims_as_expected=verdict.get("as_expected") is True,
        cases=tuple(_read_case(run_dir, case) for case in sorted(cases, key=wording.order)),
        soak=soak,
        notes=tuple(notes),
        software=made_with,
        error=text(verdict.get("error")),
        asked=tuple(one for one in items(verdict.get("asked")) if isinstance(one, str)),
    )


def _software(run_dir: Path, notes: list[str]) -> str:
    if not (run_dir / SOFTWARE).exists():
        return ""
    made_with = _object(run_dir / SOFTWARE, notes)
    words = [text(made_with.get("vhdtool")), text(made_with.get("commit"))]
    return " ".join(word for word in words if word)


def _read_case(run_dir: Path, case: Case) -> Case:
    notes = list(case.notes)
    name = case.directory
    # The name comes from a file: it must not lead out of the run directory.
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return dataclasses.replace(
            case,
            notes=(
                *notes,
                f"{name!r} is not the name of a case directory; only verdict.json is used",
            ),
        )
    path = run_dir / name
    if not path.is_dir():
        return dataclasses.replace(
            case, notes=(*notes, "the case has no directory; only verdict.json is used")
        )
    facts = _object(path / "case.json", notes)
    record = load_record(path)
    console = read_console(record.console, record.console_problems)
    notes += [*record.events.problems[:PROBLEMS], *record.console_problems[:PROBLEMS]]
    try:
        reproduce = (path / "reproduce.txt").read_text(encoding="utf-8", errors="replace")
        reproduce = text(reproduce).strip()
    except OSError:
        reproduce = ""
        notes.append("no reproduce.txt")
    return dataclasses.replace(
        case,
        path=path,
        facts=facts,
        given=_given(case, facts),
        events=record.events,
        acks=tuple(console.acks),
        reproduce=reproduce,
        files=tuple(_files(path)),
        notes=tuple(notes),
    )


def _given(case: Case, facts: dict[str, Any]) -> str:
    if case.strategy in STRATEGIES:
        return ""
    return "; ".join(text(step) for step in items(facts.get("steps")) if isinstance(step, str))


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append(f"no {path.name}")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be used: {error}")
    else:
        if isinstance(value, dict):
            return mapping(value)
        notes.append(f"{path.name} is not a JSON object")
    return {}


def _files(path: Path) -> Iterator[str]:
    """The files that the page links to, relative to the case directory."""
    for name in _LINKED:
        if (path / name).is_file():
            yield name
    for pattern in _LINKED_GLOBS:
        for found in sorted(path.glob(pattern)):
            yield found.relative_to(path).as_posix()
    for found in sorted((path.parent / "failed").glob(f"{glob.escape(path.name)}-*")):
        # Files of an attempt in which the lab itself failed.
        yield f"../failed/{found.name}"
