"""Verdicts of a run for the documentation: the file docs/results/xen.json, a table in docs/xen.md.

    python -m benchmarks.verdicts RUN docs/results/xen.json

The file has the date, the versions, the command, and an entry for each case.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.soak import replaced

ROOT = Path(__file__).resolve().parent.parent


def summary(run: Path, command: str, versions: str) -> dict[str, Any]:
    """What the documentation keeps of a run. Raises SystemExit for one that went wrong."""
    verdict = json.loads((run / "verdict.json").read_text())
    if not verdict["as_expected"]:
        raise SystemExit(f"{run} is not as expected; its verdicts are not for the documentation")
    cases = []
    for found in verdict["strategies"]:
        case = json.loads((run / found["case"] / "case.json").read_text())
        blackout = (found.get("blackout_ms") or {}).get("total")
        cases.append(
            {
                "strategy": case["strategy"],
                "guard": "on" if case["guard"] else "off",
                "expected": case["expected"],
                "verdict": found["verdict"],
                "attempts": case["attempts"],
                "why": found["why"],
                "blackout_ms": blackout and round(blackout),
            }
        )
    return {
        "run": verdict["run"],
        "command": command,
        "versions": versions,
        "hypervisor": verdict["hypervisor"],
        "storage": verdict["storage"],
        "cases": cases,
    }


def table(found: dict[str, Any]) -> str:
    """The table of a summary, in Markdown."""
    year, month, day = (found["run"][a:b] for a, b in ((0, 4), (4, 6), (6, 8)))
    where = f"images on {found['storage'].upper()}"
    head = f"`{found['command']}`, {year}-{month}-{day}, {found['versions']}, {where}:\n\n"
    lines = ["| strategy | guard | verdict | blackout, s |", "|---|---|---|---|"]
    for case in found["cases"]:
        stood = case["blackout_ms"]
        shown = "" if stood is None else f"{stood / 1000:.1f}"
        lines.append(f"| `{case['strategy']}` | {case['guard']} | {case['verdict']} | {shown} |")
    return head + "\n".join(lines)


def paragraph(found: dict[str, Any]) -> str:
    """A sentence for the README: which orders ended as the table above it says."""
    names = dict.fromkeys(case["strategy"] for case in found["cases"])
    *first, last = [f"`{name}`" for name in names]
    text = (
        f"`{found['command']}`, a real `xl migrate` between two emulated hosts with Xen and NFS, "
        f"gave the same verdicts for {', '.join(first)} and {last}: {len(found['cases'])} of "
        f"{len(found['cases'])} cases. [Xen](docs/xen.md)"
    )
    return textwrap.fill(text, 108, break_long_words=False, break_on_hyphens=False)


PLACES = {
    ("docs/results/xen.json", "docs/xen.md"): table,
    ("docs/results/xen.json", "README.md"): paragraph,
}
"""(file, page) -> the text of the page that is made from the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help="below the checkout, as docs/results/xen.json")
    parser.add_argument("--command", default="make lab LAB=xen")
    parser.add_argument("--versions", default="Xen 4.17, Debian 12 on emulated hosts")
    args = parser.parse_args()
    found = summary(args.run, args.command, args.versions)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    name = args.out.resolve().relative_to(ROOT).as_posix()
    for (source, page), text in PLACES.items():
        if source == name:
            path = ROOT / page
            path.write_text(replaced(path.read_text(), name, text(found)))
            print(f"{page} has the verdicts of the run, as {name}")


if __name__ == "__main__":
    main()
