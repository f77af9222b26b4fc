"""A run directory -> Run: verdict.json and, for each case, what its directory holds.

Only a verdict.json that cannot be read is an error. Anything else that is missing or torn
becomes a note on the case, and the report is made from what is left.
"""

import dataclasses
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.oracle.evidence.console import read_console
from vhdtool.oracle.evidence.record import load_record
from vhdtool.report import texts as words
from vhdtool.report.case import Case, parse_entry
from vhdtool.report.json_fields import mapping, text

_OFFERED = (
    "case.json", "events.jsonl", "console.jsonl", "image.vhd", "image.qcow2", "check.json",
    "reproduce.txt",
)  # fmt: skip
PROBLEMS = 3
"""Problems of one file that are told; a torn file may have thousands."""
_OFFERED_GLOBS = ("*.log", "metadata/*.json", "held/*.json")


@dataclass(frozen=True)
class Run:
    """A run: where it is, what it ran on, and its cases, strategy by strategy."""

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
    error: str = ""
    """Why the run did not come to its end."""

    @property
    def as_expected(self) -> bool:
        """True only if the run says so and every case agrees; an empty run proves nothing."""
        agreed = bool(self.cases) and all(case.as_expected for case in self.cases)
        return self.claims_as_expected and agreed and not self.error


def load_verdict(run_dir: Path) -> dict[str, Any]:
    """verdict.json of `run_dir`. Raises UsageError when it is missing or no JSON object."""
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
    """Everything the report needs of `run_dir`; `verdict` where it is not verdict.json's.

    Raises UsageError as `load_verdict` does.
    """
    run_dir = run_dir.resolve()
    verdict = verdict or load_verdict(run_dir)
    notes = list[str]()
    entries = [entry for entry in verdict["strategies"] if isinstance(entry, dict)]
    if len(entries) < len(verdict["strategies"]):
        notes.append("verdict.json: some entries of `strategies` are no objects; left out")
    cases = [parse_entry(entry) for entry in entries]
    soak = dict[str, Any]()
    if (run_dir / "soak.json").exists():
        soak = _object(run_dir / "soak.json", notes)
    return Run(
        path=run_dir,
        name=text(verdict.get("run")) or run_dir.name,
        hypervisor=text(verdict.get("hypervisor"), "?"),
        accelerator=text(verdict.get("accelerator"), "?"),
        storage=text(verdict.get("storage"), "?"),
        image=text(verdict.get("image"), "?"),
        claims_as_expected=verdict.get("as_expected") is True,
        cases=tuple(_read_case(run_dir, case) for case in sorted(cases, key=words.order)),
        soak=soak,
        notes=tuple(notes),
        error=text(verdict.get("error")),
    )


def _read_case(run_dir: Path, case: Case) -> Case:
    notes = list(case.notes)
    name = case.directory
    # The name comes from a file: it must not lead out of the run.
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return dataclasses.replace(
            case, notes=(*notes, f"{name!r} is no name of a case directory; only verdict.json used")
        )
    path = run_dir / name
    if not path.is_dir():
        return dataclasses.replace(
            case, notes=(*notes, "the case's directory is not there; only verdict.json used")
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
        events=record.events,
        acks=tuple(console.acks),
        reproduce=reproduce,
        files=tuple(_files(path)),
        notes=tuple(notes),
    )


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
        notes.append(f"{path.name} is no JSON object")
    return {}


def _files(path: Path) -> Iterator[str]:
    """Files of the record that a reader may want to open, relative to the case directory."""
    for name in _OFFERED:
        if (path / name).is_file():
            yield name
    for pattern in _OFFERED_GLOBS:
        for found in sorted(path.glob(pattern)):
            yield found.relative_to(path).as_posix()
    for found in sorted((path.parent / "failed").glob(f"{glob.escape(path.name)}-*")):
        # What an attempt left in which the lab itself failed.
        yield f"../failed/{found.name}"
