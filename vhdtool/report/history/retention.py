"""Removes old runs, so that a nightly job does not fill its disk.

Only a directory that the lab itself named and whose verdict.json says that it is this run is ever
removed. All else stays: a run that was not as expected or has not finished, the newest that was as
expected, one that has a file `keep`, the current one, the one that `latest` names, and every
directory with another name.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.verdict import counted
from vhdtool.report.history.runs import STAMP, PastRun, read_run

KEEP = "keep"
"""A file of this name in a run's directory keeps the run."""
_REMOVED = ".removed-"


@dataclass(frozen=True)
class Removal:
    """What `remove_old_runs` did: names of runs, from the oldest on."""

    removed: tuple[str, ...]
    unexpected: tuple[str, ...]
    """Old runs that stay, since they were not as expected or did not finish."""
    failed: tuple[tuple[str, str], ...]
    """Runs that could not be removed, and why."""

    @property
    def sentence(self) -> str:
        """One line; empty if there was nothing to do."""
        parts = [f"removed {counted(len(self.removed), 'old run')}"] if self.removed else []
        if self.unexpected:
            stay = f"{counted(len(self.unexpected), 'old run')} not as expected"
            parts.append(f"kept {stay} (first {self.unexpected[0]})")
        parts += [f"{name} cannot be removed ({reason})" for name, reason in self.failed]
        return "; ".join(parts)


def remove_old_runs(current: Path, keep: int) -> Removal:
    """Remove what is older than the newest `keep` runs beside the run `current`.

    Runs are counted by their names, whatever their verdict, and `current` counts as one of the
    newest. Raises UsageError if `current` is no run, or `keep` is less than 1.
    """
    if keep < 1:
        raise UsageError(f"{keep}: keeps not even the current run; the least is 1")
    if not (current / "verdict.json").is_file():
        raise UsageError(f"{current}: has no verdict.json; give the directory of a run")
    current = current.resolve()
    folder = current.parent
    removed, unexpected, failed = list[str](), list[str](), list[tuple[str, str]]()
    with contextlib.suppress(OSError):
        _finish_removals(folder)
    others = [name for name in _named_by_the_lab(folder) if name != current.name]
    old = others[: max(0, len(others) - (keep - 1))]
    stays = {os.path.basename(os.path.realpath(folder / "latest"))}
    if old:
        stays.add(_newest_good(folder, [*others, current.name]))
    for name in old:
        run = _run(folder / name)
        if run is None or name in stays or os.path.lexists(folder / name / KEEP):
            continue
        if not run.as_expected:
            unexpected.append(name)
            continue
        try:
            _remove(folder, name)
            removed.append(name)
        except OSError as error:
            failed.append((name, error.strerror or str(error)))
    return Removal(tuple(removed), tuple(unexpected), tuple(failed))


def _named_by_the_lab(folder: Path) -> list[str]:
    """Directories, and no links to any, whose names are those of runs; from the oldest on."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if STAMP.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )


def _run(path: Path) -> PastRun | None:
    """The run in a directory; None where verdict.json is damaged, or that of another run."""
    try:
        run = read_run(path)
    except TornRecord:
        return None
    return run if run.recorded_name == path.name else None


def _newest_good(folder: Path, names: list[str]) -> str:
    """The newest run that was as expected: where a bisection begins. "" if there is none."""
    for name in sorted(names, reverse=True):
        run = _run(folder / name)
        if run is not None and run.as_expected:
            return name
    return ""


def _remove(folder: Path, name: str) -> None:
    """Remove a run in two steps: a half of it never looks like a run.

    If the second step is interrupted, the next removal completes it.
    """
    gone = folder / f"{_REMOVED}{name}"
    os.rename(folder / name, gone)
    shutil.rmtree(gone)


def _finish_removals(folder: Path) -> None:
    with os.scandir(folder) as entries:
        left = [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(_REMOVED)
            and STAMP.fullmatch(entry.name.removeprefix(_REMOVED))
            and entry.is_dir(follow_symlinks=False)
        ]
    for path in left:
        shutil.rmtree(path)
