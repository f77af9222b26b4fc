"""How long `vhdtool history` takes for a thousand runs.

    python benchmarks/history.py [--runs 1000] [--repeats 5] [--seeds 1] [--out FILE]

From the start of the process to its end, on runs of 15 cases with verdicts of the usual size, which
are made in a temporary directory. The page cache is warm; with a cold one the disk decides.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.run_history import make_runs  # noqa: E402


def odd(number: int, strategy: str, guard: bool, seed: int) -> str | None:
    """A few cases that are not as expected, of each kind."""
    if strategy == "activate" and number % 97 == 5:
        return "corrupt"
    if strategy == "hold" and number % 53 == 7:
        return "error"
    return "inconclusive" if strategy == "login" and number % 211 == 3 else None


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds from start to end, and seconds of processor time."""
    started, used = time.monotonic(), processor_time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.monotonic() - started, processor_time() - used


def processor_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="cases of each order in a run")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vhdtool-history-") as folder:
        runs = Path(folder, "runs")
        made = make_runs(runs, arguments.runs, arguments.seeds, odd)
        size = sum((run / "verdict.json").stat().st_size for run in made)
        command = [sys.executable, "-m", "vhdtool", "history", str(runs)]
        times = {
            "page and summary": [measure(command) for _ in range(arguments.repeats)],
            "`--json`": [measure([*command, "--json"]) for _ in range(arguments.repeats)],
        }
        page = (runs / "history.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    lines = [
        f"{arguments.runs} runs with {15 * arguments.seeds} cases each; their verdicts have "
        f"{size / 1e6:.0f} MB. {os.cpu_count()} processors, Python {sys.version.split()[0]}.",
        "",
        "| output | median s | least s | greatest s | processor s |",
        "|---|---|---|---|---|",
    ]
    for name, found in times.items():
        wall, used = zip(*found, strict=True)
        spread = f"{statistics.median(wall):.2f} | {min(wall):.2f} | {max(wall):.2f}"
        lines.append(f"| {name} | {spread} | {statistics.median(used):.2f} |")
    lines += ["", f"The page has {page / 1e6:.2f} MB; the process used up to {peak} MiB."]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(f"# vhdtool history\n\n{text}")


if __name__ == "__main__":
    main()
