"""The beginning and every end of a run's record: a verdict and a report, whatever happens between.

A run can end in more ways than anyone can handle when it does: killed, on a full disk, with no
host to be reached. So the pieces are written first, saying that the run has not come to its end,
and replaced when it has. `latest` names a run only once it has them.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.oracle.run import is_case, judge_run, run_verdict
from vhdtool.oracle.verdict import Entry
from vhdtool.report.json_fields import text
from vhdtool.report.output.files import write_files
from vhdtool.report.record import load_run, load_verdict

UNDER_WAY = "it is still under way, was killed, or could not write more"
Verdict = dict[str, object]


def begin(run_dir: Path, asked: Sequence[str]) -> None:
    """Makes the record of a run that is to have the cases `asked`.

    Again for one that has begun and has no case yet: the playbooks and the runner both begin it.
    Raises UsageError where another run's record is, or where nothing can be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = os.listdir(run_dir)
    except OSError as error:
        raise UsageError(f"{run_dir}: {error.strerror}; choose another directory") from None
    used = "verdict.json" in names and not _is_under_way(run_dir)
    if used or any(is_case(run_dir / name) for name in names):
        raise UsageError(f"{run_dir}: has the record of another run; choose another directory")
    _publish(run_dir, run_verdict(run_dir.resolve().name, [], [], UNDER_WAY, asked))
    if run_dir.resolve().parent.name == "runs":
        _name_latest(run_dir.resolve())


def end(run_dir: Path, judged: Mapping[str, Entry]) -> Verdict:
    """Writes and returns the verdict of a run that came to its end; `judged` by case."""
    verdict = judge_run(run_dir, judged, error="")
    _publish(run_dir, verdict)
    return verdict


@contextlib.contextmanager
def ended_early(run_dir: Path, judged: Mapping[str, Entry]) -> Iterator[None]:
    """What ends the block, an interruption too, becomes the run's error, and goes on.

    Only cases that were judged by then have a verdict: judging more would take too long.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(VhdtoolError, OSError):
            _end_early(run_dir, why(error), judged)
        raise


def end_unless_ended(run_dir: Path, error: str) -> None:
    """For whoever started the run, and saw it fail before it could say so itself."""
    if _is_under_way(run_dir):
        _end_early(run_dir, " ".join(error.split()), {})


def why(error: BaseException) -> str:
    """One line."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    if isinstance(error, SystemExit):
        return f"it was ended with exit code {error.code}"
    if isinstance(error, OSError) and not isinstance(error, VhdtoolError):
        return f"{error.filename or 'input or output'}: {error.strerror}"
    kind = "" if isinstance(error, VhdtoolError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _end_early(run_dir: Path, error: str, judged: Mapping[str, Entry]) -> None:
    asked = load_verdict(run_dir).get("asked")
    cases = [run_dir / name for name in judged]
    entries = list(judged.values())
    names = [text(name) for name in asked] if isinstance(asked, list) else []
    _publish(run_dir, run_verdict(run_dir.resolve().name, cases, entries, error, names))


def _is_under_way(run_dir: Path) -> bool:
    try:
        return load_verdict(run_dir).get("error") == UNDER_WAY
    except UsageError:
        return False


def _publish(run_dir: Path, verdict: Verdict) -> None:
    data = json.dumps(verdict, indent=1).encode() + b"\n"
    write_files(load_run(run_dir, verdict), {run_dir / "verdict.json": data})


def _name_latest(run: Path) -> None:
    link = run.parent / "latest"
    part = run.parent / f".latest.{secrets.token_hex(4)}"
    try:
        part.symlink_to(run.name)
        os.replace(part, link)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{link}: {error.strerror}; it must be a link, or not be there") from None
