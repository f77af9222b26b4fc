"""Begin and end the record of a run, so that each run has a verdict and a report.

A run may be killed, fill its disk or reach no host. So verdict and report are written first; they
say that the run has not finished, and are replaced when it has. The link `latest` is set to a run
after that.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.oracle.run import is_case, judge_run, run_verdict
from vhdtool.oracle.verdict import Entry
from vhdtool.report.lenient_json import text
from vhdtool.report.output.files import write_files
from vhdtool.report.run import load_run, load_verdict
from vhdtool.report.software import NAME as SOFTWARE
from vhdtool.report.software import software

UNFINISHED = "it is still under way, was killed, or could not write more"
Verdict = dict[str, object]


def begin(run_dir: Path, asked: Sequence[str]) -> None:
    """Create the record of a run that is to have the cases `asked`.

    A second call is fine until the run has a case: the playbooks and the runner both begin it.
    Raises UsageError where another run's record is, or where nothing can be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = os.listdir(run_dir)
    except OSError as error:
        raise UsageError(f"{run_dir}: {error.strerror}; choose another directory") from None
    taken = "verdict.json" in names and not _is_unfinished(run_dir)
    if taken or any(is_case(run_dir / name) for name in names):
        raise UsageError(f"{run_dir}: has the record of another run; choose another directory")
    made_with = {run_dir / SOFTWARE: json.dumps(software()).encode() + b"\n"}
    _publish(run_dir, run_verdict(run_dir.resolve().name, [], [], UNFINISHED, asked), made_with)
    if run_dir.resolve().parent.name == "runs":
        _link_latest(run_dir.resolve())


def end(run_dir: Path, judged: Mapping[str, Entry]) -> Verdict:
    """Write and return the verdict of a finished run; `judged` has the entries by case."""
    verdict = judge_run(run_dir, judged, error="")
    _publish(run_dir, verdict)
    return verdict


@contextlib.contextmanager
def ended_early(run_dir: Path, judged: Mapping[str, Entry]) -> Iterator[None]:
    """Record an exception of the block (or an interruption) as the run's error; re-raise it.

    Only cases that were judged by then have a verdict: judging more would take too long.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(VhdtoolError, OSError):
            _end_early(run_dir, error_text(error), judged)
        raise


def end_unless_ended(run_dir: Path, error: str) -> None:
    """End a run that failed before it could record its own error."""
    if _is_unfinished(run_dir):
        _end_early(run_dir, " ".join(error.split()), {})


def error_text(error: BaseException) -> str:
    """An exception as one line."""
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


def _is_unfinished(run_dir: Path) -> bool:
    try:
        return load_verdict(run_dir).get("error") == UNFINISHED
    except UsageError:
        return False


def _publish(
    run_dir: Path, verdict: Verdict, others: Mapping[Path, bytes] = MappingProxyType({})
) -> None:
    data = json.dumps(verdict, indent=1).encode() + b"\n"
    write_files(load_run(run_dir, verdict), {run_dir / "verdict.json": data, **others})


def _link_latest(run: Path) -> None:
    link = run.parent / "latest"
    part = run.parent / f".latest.{secrets.token_hex(4)}"
    try:
        part.symlink_to(run.name)
        os.replace(part, link)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{link}: {error.strerror}; it must be a link, or not be there") from None
