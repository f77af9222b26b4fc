"""The runs of a directory: of each its verdict.json, and its options in config.json.

The directory is untrusted: an entry that is no run, or a damaged one, is named with the reason and
left out.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.lab.options import GIB, KIB, MIB, OPTIONS
from vhdtool.oracle.evidence.files import LARGEST_FILE, names_in, open_regular, read_file
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.report import software, wording
from vhdtool.report.case import Case, parse_entry
from vhdtool.report.lenient_json import items, mapping, number, text

SCHEMA = 1
STAMP = re.compile(r"\d{8}T\d{6}(?:\.\d+)?Z", re.ASCII)
"""The name that the lab gives to a run: the time at which it began."""
_PATHS = {"run_dir"}
"""Keys of config.json that differ in each run."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What runs must have in common, so that their figures can be compared."""

    hypervisor: str
    accelerator: str
    storage: str
    image: str

    def __str__(self) -> str:
        return f"{self.hypervisor}, {self.accelerator}, {self.storage}, {self.image}"


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run, as its verdict.json and config.json have it; the records of its cases are not read."""

    path: Path
    name: str
    """The name of its directory."""
    recorded_name: str
    """Its name when it was judged."""
    at: datetime
    """When it began: from its name, else its first event, else the time of verdict.json."""
    setting: Setting
    cases: tuple[Case, ...]
    asked: int
    """How many cases were requested."""
    error: str
    """Why it did not finish."""
    claims_as_expected: bool
    options: Mapping[str, str] | None
    """Options by name; None without a config.json that can be read."""
    software: Mapping[str, str]
    """What software.json has: `vhdtool`, the version, and `commit`; empty without it."""

    @property
    def label(self) -> str:
        """Its name, with the commit of vhdtool if it is known."""
        commit = self.software.get("commit")
        return f"{self.name} (commit {commit})" if commit else self.name

    @property
    def as_expected(self) -> bool:
        agreed = bool(self.cases) and all(case.as_expected for case in self.cases)
        return self.claims_as_expected and agreed and not self.error


@dataclass(frozen=True, slots=True)
class Skipped:
    """A directory that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a directory from the oldest to the newest, and what is left out."""

    folder: Path
    runs: tuple[PastRun, ...]
    skipped: tuple[Skipped, ...]


def read_runs(folder: Path) -> Runs:
    """Read every run of a directory. Raises UsageError if it is none, or has no run at all."""
    try:
        names = sorted(name for name in os.listdir(folder) if os.path.isdir(folder / name))
    except OSError as error:
        raise UsageError(
            f"{folder}: {error.strerror}; give the directory that holds the runs, such as runs"
        ) from None
    runs, skipped = list[PastRun](), list[Skipped]()
    for name in names:
        if name.startswith(".") or _is_second_name(folder, name):
            continue
        try:
            runs.append(read_run(folder / name))
        except TornRecord as error:
            skipped.append(Skipped(text(name), str(error)))
    if not runs:
        hint = ""
        if (folder / "verdict.json").exists():
            hint = f"; it is a run itself: vhdtool report {folder}"
        elif skipped:
            hint = f"; skipped {len(skipped)}, first {skipped[0].name}: {skipped[0].reason}"
        raise UsageError(f"{folder}: no runs in this directory{hint}")
    runs.sort(key=lambda run: (run.at, run.name))
    return Runs(folder, tuple(runs), tuple(skipped))


def _is_second_name(folder: Path, name: str) -> bool:
    """Whether it is a link to another entry of the directory, such as `latest`."""
    path = folder / name
    return path.is_symlink() and path.resolve().parent == folder.resolve()


def read_run(path: Path) -> PastRun:
    """Read a run. Raises TornRecord with the file and the reason, without the directory."""
    verdict = _verdict(path)
    options = _options(path)
    cases = [
        parse_entry({**mapping(entry), "oracles": {}}) for entry in items(verdict["strategies"])
    ]
    if steps := (options or {}).get("STEPS"):
        cases = [replace(case, given=steps) for case in cases]
    setting = Setting(
        *(
            text(verdict.get(key)) or "?"
            for key in ("hypervisor", "accelerator", "storage", "image")
        )
    )
    return PastRun(
        path=path,
        name=text(path.resolve().name, "?") if path.name in ("", ".", "..") else text(path.name),
        recorded_name=text(verdict.get("run")),
        at=_began(path),
        setting=setting,
        cases=tuple(sorted(cases, key=wording.order)),
        asked=len(items(verdict.get("asked"))),
        error=text(verdict.get("error")),
        claims_as_expected=verdict.get("as_expected") is True,
        options=options,
        software=_software(path),
    )


def _verdict(path: Path) -> dict[str, Any]:
    name = "verdict.json"
    try:
        verdict = json.loads(read_file(path / name))
    except TornRecord as error:
        raise TornRecord(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise TornRecord(f"{name}: not JSON ({str(error)[:80]})") from error
    if not isinstance(verdict, dict) or not isinstance(verdict.get("strategies"), list):
        raise TornRecord(f"{name}: not the verdict of a run (no list `strategies`)")
    if verdict.get("schema") != SCHEMA:
        found = text(json.dumps(verdict.get("schema")))[:40]
        raise TornRecord(f"{name}: schema {found}, this version reads {SCHEMA}")
    return verdict


def _began(path: Path) -> datetime:
    name = path.resolve().name
    if STAMP.fullmatch(name):
        try:
            return datetime.strptime(name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            pass  # digits that are no time
    wall = next(_first_walls(path), None)
    try:
        return datetime.fromtimestamp(wall or os.stat(path / "verdict.json").st_mtime, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _first_walls(path: Path) -> Iterator[float]:
    """The time of the first event of each case."""
    for name in names_in(path):
        try:
            with os.fdopen(open_regular(path / name / "events.jsonl", LARGEST_FILE), "rb") as file:
                wall = number(mapping(json.loads(file.readline(1 << 16))).get("wall"))
        except (TornRecord, OSError, ValueError, RecursionError):
            continue
        if wall is not None:
            yield wall


def _object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(read_file(path))
    except (TornRecord, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _software(path: Path) -> dict[str, str]:
    found = _object(path / software.NAME) or {}
    return {name: value for name in ("vhdtool", "commit") if (value := text(found.get(name))[:60])}


def _options(path: Path) -> dict[str, str] | None:
    """The options in config.json, by make's names where there are such, in a form to compare."""
    given = _object(path / "config.json")
    if given is None:
        return None
    known = {option.field: option for option in OPTIONS}
    found = {}
    for key, value in given.items():
        if key in known:
            name = known[key].make or known[key].variable
            found[name] = _shown_option(key, _parsed(known[key].read, value))
        elif key == "hosts":
            found[key] = ", ".join(text(mapping(host).get("name"), "?") for host in items(value))
        elif key not in _PATHS and not isinstance(value, dict | list):
            found[text(key)] = _shown_option(key, value)
    return found


def _parsed(read: Any, value: object) -> object:
    """The value of an option; as it stands where this version does not know it."""
    try:
        result: object = read(value)
    except (ValueError, UsageError):
        return value
    return result


def _shown_option(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(text(word, "?") for word in value)
    if isinstance(value, int) and key.endswith("_bytes"):
        for unit, letter in ((GIB, "g"), (MIB, "m"), (KIB, "k")):
            if value >= unit and value % unit == 0:
                return f"{value // unit}{letter}"
    return text(value) if isinstance(value, str) else text(json.dumps(value))[:200]
