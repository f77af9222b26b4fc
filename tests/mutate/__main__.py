#!/usr/bin/env python3
"""Mutates the code of the oracles, and reports whether planted faults or unit tests see it.

    python -m tests.mutate [--count N] [--seed N] [--only TEXT] [RUN or CASE ...]

Each mutant judges real records: the committed ones, and those of RUN. Records alone see it if it
misses a planted fault, or gives a record another verdict. Otherwise the unit tests must see it, or
equivalent.toml must list it with the reason why it changes nothing. Exits with 1 if a mutant
survives.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.mutate.syntax_mutants import Mutant, mutants_of, sample
from tests.support.arguments import cases_of
from vhdtool.oracle.verdict import judge_case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

ORACLE = ROOT / "vhdtool" / "oracle"
MODULES = (
    "coverage", "verdict", "checks/activation", "checks/content", "checks/in_flight",
    "checks/growth", "checks/leftovers", "checks/metadata", "checks/structure",
    "contradictions/allocations", "contradictions/case_json", "contradictions/consoles",
    "contradictions/epochs", "contradictions/event_order", "contradictions/snapshot_points",
    "evidence/allocations", "evidence/legs", "evidence/console", "evidence/load",
    "evidence/snapshots", "readers/qcow2", "readers/vhd",
)  # fmt: skip
"""The modules that decide a verdict. The others load the record, and plant faults."""
TEXT_ONLY = (
    "Load.describe", "_damage", "counted", "_first", "_name", "_end_text", "_short", "_margin",
    "_measure", "_identity", "_entry", "inconclusive_entry", "ContentOutcome", "_block_of",
)  # fmt: skip
"""Functions that make messages and figures: no verdict depends on them."""
EQUIVALENT: dict[str, dict[str, str]] = tomllib.loads((HERE / "equivalent.toml").read_text())
"""Module -> name of a mutant -> why it changes nothing."""
COUNT = 130
TIMEOUT = 300
"""Seconds; a mutant that loops for ever counts as seen."""
TESTS = {
    "checks.activation": "activation", "checks.content": "content", "checks.in_flight": "depth",
    "checks.leftovers": "leftovers", "checks.metadata": "metadata", "checks.structure": "verdict",
    "coverage": "verdict depth", "evidence.legs": "activation verdict",
    "evidence.console": "console", "evidence.load": "content depth", "evidence.snapshots":
    "metadata pieces", "readers.qcow2": "view", "readers.vhd": "view", "verdict": "verdict",
}  # fmt: skip
"""Module -> the rest of the names of its test modules, besides COMMON."""
COMMON = ("bounds", "checks", "decides")


def tests_of(mutant: Mutant) -> list[str]:
    """The test modules for a mutated module, the quickest first."""
    name = mutant.module.removeprefix("vhdtool.oracle.")
    names = [*COMMON, *TESTS.get(name, "metadata activation").split()]
    paths = [f"tests/unit/test_oracle_{one}.py" for one in names]
    return [path for path in paths if (ROOT / path).exists()]


@dataclass(frozen=True)
class Result:
    """What saw a mutant. `by`: planted, verdict, tests, equivalent or survived."""

    mutant: Mutant
    by: str
    detail: str = ""


def records(paths: Sequence[Path], folder: Path) -> list[str]:
    """Each record with the verdict of the unchanged code: "DIRECTORY=VERDICT"."""
    given = [path / "case.json" for path in cases_of(paths)]
    for archive in sorted((ROOT / "tests" / "records").glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, **safe)  # type: ignore[arg-type]
    found = [*sorted(folder.glob("*/case.json")), *given]
    known = []
    for case in found:
        entry = judge_case(case.parent)
        if entry["planted"]["faults"] != entry["planted"]["caught"]:
            raise SystemExit(f"mutate: {case.parent}: {entry['why']}")
        known.append(f"{case.parent}={entry['verdict']}")
    return known


def try_one(mutant: Mutant, known: Sequence[str], folder: Path, tests: bool = True) -> Result:
    """Judges the records with the mutant, then runs the tests."""
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".py") as file:
        file.write(mutant.source())
        file.flush()
        start = [sys.executable, str(HERE / "mutated.py"), mutant.module, file.name]
        done = _run([*start, "judge", *known])
        if done is None or done.returncode:
            return Result(mutant, "planted", "does not end" if done is None else "does not start")
        answer = json.loads(done.stdout)
        if answer is not None:
            return Result(mutant, answer[0], f"{answer[1]}: {answer[2]}")
        why = EQUIVALENT.get(mutant.module, {}).get(mutant.name)
        if why is not None:
            return Result(mutant, "equivalent", why)
        if not tests:
            return Result(mutant, "survived", "the tests were not run")
        done = _run([*start, "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(mutant)])
        if done is None or done.returncode:
            failed = [] if done is None else done.stdout.splitlines()
            failed = [line for line in failed if line.startswith(("FAILED", "ERROR"))]
            return Result(mutant, "tests", failed[0] if failed else "")
    return Result(mutant, "survived")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return None


def all_mutants() -> list[Mutant]:
    found: list[Mutant] = []
    for name in MODULES:
        module = f"vhdtool.oracle.{name.replace('/', '.')}"
        found += mutants_of(ORACLE / f"{name}.py", module)
    return [one for one in found if one.name.partition(":")[0] not in TEXT_ONLY]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="runs or cases beside tests/records")
    parser.add_argument("--count", type=int, default=COUNT, help="mutants to try; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the choice")
    parser.add_argument("--only", default="", help="mutants whose module or name has this text")
    parser.add_argument("--no-tests", action="store_true", help="planted faults only")
    parser.add_argument("--list", action="store_true", help="print each mutant and what saw it")
    options = parser.parse_args()
    mutants = [m for m in all_mutants() if options.only in f"{m.module} {m.name}"]
    chosen = sample(mutants, options.count or len(mutants), options.seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = records(options.paths, folder)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(try_one, mutant, known, folder, not options.no_tests)
                for mutant in chosen
            ]
            results = []
            for job in as_completed(jobs):
                results.append(one := job.result())
                if options.list or one.by == "survived":
                    text = f"{one.by}: {one.mutant.module}: {one.mutant.name}"
                    print(f"{text}  [{one.detail[:120]}]", file=sys.stderr, flush=True)
    table(results, len(mutants), len(known), time.monotonic() - start)
    return 1 if any(one.by == "survived" for one in results) else 0


def table(results: Sequence[Result], total: int, records_tried: int, seconds: float) -> None:
    """Prints the counts by module, and in total."""
    columns = ("planted", "verdict", "tests", "equivalent", "survived")
    print(f"{len(results)} of {total} mutants, {records_tried} records, {seconds:.0f} s\n")
    print("| module | mutants | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * (len(columns) + 1))
    for module in (*dict.fromkeys(sorted(one.mutant.module for one in results)), "all"):
        mine = Counter(one.by for one in results if module in (one.mutant.module, "all"))
        counts = " | ".join(str(mine[column]) for column in columns)
        print(f"| {module.removeprefix('vhdtool.oracle.')} | {mine.total()} | {counts} |")
    real = [one for one in results if one.by != "equivalent"]
    by = Counter(one.by for one in real)
    if real:
        share = {key: round(100 * by[key] / len(real)) for key in ("planted", "verdict")}
        both = round(100 * (by["planted"] + by["verdict"]) / len(real))
        print(
            f"\nOf {len(real)} that change something, real records alone show {both} %: "
            f"{share['planted']} % by a planted fault that is missed, {share['verdict']} % by "
            f"another verdict on a record without a planted fault."
        )
    for one in results:
        if one.by == "survived":
            print(f"\nsurvived: {one.mutant.module}: {one.mutant.name}")


if __name__ == "__main__":
    sys.exit(main())
