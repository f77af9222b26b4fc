#!/usr/bin/env python3
"""Changes a record in hundreds of ways, and judges it each time: no verdict may be wrong.

    python -m tests.tamper [--sample N] [--seed N] [--only TEXT] [RUN or CASE ...]

Without a directory, real labs are run first. A case whose own verdict is neither consistent nor
refused is skipped, because no change makes it either. Exits with 1 if a verdict is wrong.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.support.arguments import at_least_one, cases_of
from tests.tamper.case import case_changes, files_of
from tests.tamper.console import console_changes
from tests.tamper.draft import Change, Draft
from tests.tamper.events import event_changes
from tests.tamper.holdings import holdings_changes
from tests.tamper.image import image_changes
from tests.tamper.snapshots import snapshot_changes
from vhdtool.oracle import verdict
from vhdtool.oracle.planted.plant import Planted
from vhdtool.oracle.verdict import judge_case

ROOT = Path(__file__).resolve().parents[2]

KINDS = (
    event_changes,
    snapshot_changes,
    image_changes,
    console_changes,
    holdings_changes,
    case_changes,
)
LABS = (
    {"STRATEGY": "activate,activate-back,activate-retry,login,overlap"},
    {"STRATEGY": "activate,overlap", "IMAGE": "qcow2"},
)


def changes(draft: Draft, other: Path | None) -> Iterator[Change]:
    """Every change that this record allows; `other`: a record of another run."""
    for kind in KINDS:
        yield from kind(draft)
    if other is not None:
        yield from files_of(other)


@dataclass
class Result:
    """The outcome of all changes of one case."""

    case: str
    verdict: str
    tried: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def tamper(
    path: Path, other: Path | None = None, sample: int | None = None, seed: int = 1, only: str = ""
) -> Result:
    """Tries all changes, or a sample of them, on a copy of a case."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Draft(path, Path(folder))
        clean = str(judge_case(draft.path)["verdict"])
        result = Result(path.name, clean)
        if clean not in ("consistent", "refused"):
            return result
        start = time.monotonic()
        todo = [change for change in changes(draft, other) if only in change.name]
        if sample is not None and sample < len(todo):
            todo = random.Random(seed).sample(todo, sample)
        for change in todo:
            _try(draft, change, clean, result)
        result.seconds = time.monotonic() - start
    return result


@contextlib.contextmanager
def unplanted(change: Change) -> Iterator[None]:
    """Plants no faults, unless the verdict must not change.

    The oracles must see a contradiction themselves, and not because a planted fault was missed. It
    also takes a third of the time.
    """
    if "same" in change.right:
        yield
        return
    with mock.patch.object(verdict, "try_oracles", return_value=Planted(1, 1)):
        yield


def _try(draft: Draft, change: Change, clean: str, result: Result) -> None:
    try:
        change.apply(draft)
        draft.save()
        change.raw(draft)
        with unplanted(change):
            entry = judge_case(draft.path)
    except LookupError:
        return
    finally:
        draft.restore()
    result.tried += 1
    right = {clean if verdict == "same" else verdict for verdict in change.right}
    if entry["verdict"] not in right:
        result.wrong.append(f"{change.name}: {entry['verdict']} ({entry['why'][:200]})")
        print(f"wrong: {result.case}: {result.wrong[-1]}", file=sys.stderr, flush=True)


def labs(folder: Path) -> list[Path]:
    """Runs real labs, and returns the run directories."""
    runs = []
    # `make tamper SAMPLE=...` passes its own variables to each make that it starts.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment.pop("MFLAGS", None)
    for name in ("SAMPLE", "RUNS", "SEED"):
        environment.pop(name, None)
    for number, options in enumerate(LABS):
        run = folder / f"run{number}"
        words = [f"{key}={value}" for key, value in options.items()]
        command = ["make", "lab", *words, f"RUN_DIR={run}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        runs.append(run)
    subprocess.run(["make", "clean-lab"], cwd=ROOT, env=environment, check=True)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--sample", type=at_least_one, help="changes of each case; default all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--only", default="", help="changes whose name has this text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_of(options.paths or labs(Path(folder)))
        others = [next((o for o in cases if o.name != c.name), None) for c in cases]
        more = (options.sample, options.seed, options.only)
        with ProcessPoolExecutor(2) as pool:
            jobs = [pool.submit(tamper, c, o, *more) for c, o in zip(cases, others, strict=True)]
            found = [job.result() for job in jobs]
    print("| case | verdict | changes | wrong | seconds |")
    print("|---|---|---|---|---|")
    for result in found:
        counts = f"{result.tried} | {len(result.wrong)} | {result.seconds:.0f}"
        print(f"| {result.case} | {result.verdict} | {counts} |")
    return 1 if any(result.wrong for result in found) or not found else 0


if __name__ == "__main__":
    sys.exit(main())
