"""Verdicts of a run for the documentation: the file docs/results/xen.json, a table in docs/xen.md.

    python -m benchmarks.verdicts RUN docs/results/xen.json

The file has the date, the versions, the command, and an entry for each case.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.soak import replaced

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"docs/results/xen.json": "docs/xen.md"}
"""The page whose table is made from a file."""


def summary(run: Path, command: str, versions: str) -> dict[str, Any]:
    """What the documentation keeps of a run. Raises SystemExit for one that went wrong."""
    verdict = json.loads((run / "verdict.json").read_text())
    if not verdict["as_expected"]:
        raise SystemExit(f"{run} is not as expected; its verdicts are not for the documentation")
    software = json.loads((run / "software.json").read_text())
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
        "commit": software["commit"].removesuffix("-dirty"),
        "hypervisor": verdict["hypervisor"],
        "storage": verdict["storage"],
        "cases": cases,
    }


def table(found: dict[str, Any]) -> str:
    """The table of a summary, in Markdown."""
    head = f"`{found['command']}`, {found['run'][:8]}, {found['versions']}, {found['storage']}:\n\n"
    lines = ["| strategy | guard | verdict | blackout, s |", "|---|---|---|---|"]
    for case in found["cases"]:
        stood = case["blackout_ms"]
        shown = "" if stood is None else f"{stood / 1000:.1f}"
        lines.append(f"| `{case['strategy']}` | {case['guard']} | {case['verdict']} | {shown} |")
    return head + "\n".join(lines)


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
    page = ROOT / PLACES[name]
    page.write_text(replaced(page.read_text(), name, table(found)))
    print(f"{name} and {PLACES[name]} have the verdicts of the run")


if __name__ == "__main__":
    main()
