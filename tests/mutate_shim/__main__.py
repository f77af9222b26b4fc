"""Does the lab see a shim that is wrong? Runs real cases on mutants of the shim.

    make mutate-shim [MUTANT=name,...] [SEEDS=3] [OUT=file]

The hosts are those of `make lab`, provisioned by one run of the true shim in which every case that
a mutant needs must end as expected. Then each mutant is put beside that shim (not in its place) and
its cases run, seed after seed, until one is not as expected. A mutant that is green with every seed
is one that this testbed cannot tell from a shim that is right.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mutate_shim.mutants import MUTANTS, Mutant
from tests.support.arguments import at_least_one
from vhdtool.lab.hosts.bundle import files

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
FAST_PATH = Path("vhdtool/nbd/csrc")
PATIENCE = 400
"""Seconds that the cases of one seed may take."""


@dataclasses.dataclass
class Seen:
    """What showed a mutant, if anything did."""

    mutant: Mutant
    seeds: int = 0
    case: str = ""
    verdict: str = ""
    oracles: str = ""
    why: str = ""
    seconds: float = 0.0


def make(mutant: Mutant, to: Path) -> Path:
    """The package that hosts run, with the mutant's patches. Raises SystemExit when one misses."""
    shutil.rmtree(to, ignore_errors=True)
    for name, data in files():
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if any(name.endswith(".c") for name, _, _ in mutant.patches):
        shutil.copytree(ROOT / FAST_PATH, to / FAST_PATH)
    for name, old, new in mutant.patches:
        path = to / "vhdtool" / name
        text = path.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{mutant.name}: {name} has its text {text.count(old)} times: {old!r}")
        path.write_text(text.replace(old, new))
        if path.suffix == ".py":
            compile(path.read_text(), str(path), "exec")
    if (to / FAST_PATH).exists():
        build_fast_path(to / FAST_PATH)
    return to


def build_fast_path(sources: Path) -> None:
    """Builds a mutant's fast path from its sources in C."""
    command = ["cc", "-O2", "-shared", "-fPIC", "-I", sysconfig.get_path("include")]
    command += ["-o", str(sources.parent / "_fast_path.abi3.so")]
    subprocess.run([*command, *map(str, sorted(sources.glob("*.c")))], check=True)


def provisioned(cases: list[str]) -> dict[str, Any]:
    """The configuration of a run of the true shim, in which all was as expected."""
    folder = BUILD / "true"
    shutil.rmtree(folder, ignore_errors=True)
    strategies = ",".join(dict.fromkeys(cases))
    variables = {"STRATEGY": strategies, "GUARD": "on", "RUN_DIR": str(folder), "KEEP": "1"}
    command = [sys.executable, "-I", str(ROOT / "scripts" / "lab"), "run"]
    # What make was given for the mutants is not for the lab.
    given = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(command, env={**given, **variables}, check=False)
    if done.returncode:
        raise SystemExit("the true shim is not green: there is nothing to compare mutants with")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def run(config: dict[str, Any], lib: Path, case: str, seed: int, folder: Path) -> dict[str, Any]:
    """The entry of a case in verdict.json; one of the lab itself where there is none."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hosts = [{**host, "lib": str(lib)} for host in config["hosts"]]
    changed = {"strategies": [case], "seed": seed, "guard": "on", "run_dir": str(folder)}
    # The looks at live hosts take seconds, and are no part of the evidence.
    changed["live_tests"] = False
    path = folder / "config.json"
    path.write_text(json.dumps({**config, **changed, "hosts": hosts}))
    command = [sys.executable, "-m", "vhdtool", "lab", "run", "--config", str(path)]
    try:
        with open(folder / "output", "w") as out:
            subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, timeout=PATIENCE, check=False)
        entries = json.loads((folder / "verdict.json").read_text())["strategies"]
    except subprocess.TimeoutExpired:
        entries = []
    except (OSError, ValueError, KeyError):
        last = (folder / "output").read_text().strip().splitlines()[-1:]
        entries = [{"verdict": "error", "expected": "", "why": " ".join(last), "oracles": {}}]
    hangs = {"verdict": "error", "expected": "", "why": "it did not end", "oracles": {}}
    return entries[0] if entries else hangs


def hunt(mutant: Mutant, config: dict[str, Any], seeds: int) -> Seen:
    """Runs a mutant until a case is not as expected, or all seeds are used up."""
    seen = Seen(mutant)
    began = time.monotonic()
    lib = make(mutant, BUILD / mutant.name / "lib")
    for seed in range(1, seeds + 1):
        seen.seeds = seed
        for case in mutant.cases:
            entry = run(config, lib, case, seed, BUILD / mutant.name / f"{case}-{seed}")
            if entry["verdict"] == entry["expected"]:
                continue
            seen.case, seen.verdict, seen.why = case, entry["verdict"], entry["why"]
            results = {name: one["result"] for name, one in entry["oracles"].items()}
            bad = [n for n, r in results.items() if r == "fail"]
            bad = bad or [n for n, r in results.items() if r != "pass"]
            seen.oracles = "the lab" if entry["verdict"] == "error" else ", ".join(bad)
            seen.seconds = time.monotonic() - began
            return seen
    seen.seconds = time.monotonic() - began
    return seen


def table(found: list[Seen], seeds: int) -> Iterator[str]:
    """In Markdown."""
    caught = sum(bool(one.case) for one in found)
    yield f"# Wrong shims: {caught} of {len(found)} seen within {seeds} seeds"
    yield ""
    yield "`make mutate-shim` prints this table. `error` by the lab: the guest saw an I/O error, or"
    yield "an operation of the hand-over failed; the case is not green, but no oracle speaks."
    yield ""
    yield "| mutant | the shim | seen in | verdict | by | seeds |"
    yield "|---|---|---|---|---|---|"
    for one in found:
        case, by = one.case or "**nothing**", one.oracles or "-"
        yield (
            f"| `{one.mutant.name}` | {one.mutant.what} | {case} | {one.verdict or 'as expected'} "
            f"| {by} | {one.seeds} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", default="", help="only these, with commas between them")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument("--out", type=Path, help="where the table is written too")
    args = parser.parse_args()
    names = {mutant.name: mutant for mutant in MUTANTS}
    wanted = [name for name in args.mutants.split(",") if name] or list(names)
    if unknown := set(wanted) - set(names):
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [names[name] for name in wanted]
    for mutant in chosen:
        make(mutant, BUILD / mutant.name / "lib")
    config = provisioned([case for mutant in chosen for case in mutant.cases])
    found = []
    for mutant in chosen:
        seen = hunt(mutant, config, args.seeds)
        found.append(seen)
        by = f"{seen.case}: {seen.verdict}, by {seen.oracles}" if seen.case else "NOT SEEN"
        print(f"{mutant.name}: {by} (seeds: {seen.seeds}, {seen.seconds:.0f} s)", flush=True)
        print(f"    {seen.why[:200]}", flush=True)
    text = "\n".join(table(found, args.seeds)) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
    return 0 if all(one.case for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
