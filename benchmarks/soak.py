"""The figures of README.md and docs/strategies.md, from the soak.json of a run.

    make soak N=10 && .venv/bin/python benchmarks/soak.py runs/latest
    make soak N=5 IMAGE=qcow2 && .venv/bin/python benchmarks/soak.py runs/latest

Copies the run's soak.json, with the command and the machine, to benchmarks/results/soak.json or
soak-qcow2.json, and writes the paragraph that begins and ends with a comment which names that file.
A test compares the paragraphs with the files. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import platform
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vhdtool.report.output.soak import CONFIDENCE, summarise  # noqa: E402
from vhdtool.report.run import load_verdict  # noqa: E402

PLACES = {
    "vhd": ("benchmarks/results/soak.json", "README.md"),
    "qcow2": ("benchmarks/results/soak-qcow2.json", "docs/strategies.md"),
}
WIDTH = 108
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten"}
Figures = dict[str, Any]


def collect(run: Path) -> tuple[str, Figures]:
    """(kind of image, contents of the committed file) of a run."""
    verdict = load_verdict(run)
    if not verdict.get("as_expected"):
        sys.exit(f"{run}: is not as expected; its figures do not belong into README.md")
    soak = summarise(verdict)
    image = str(verdict.get("image"))
    if image not in PLACES or soak["n"] < 2:
        sys.exit(f"{run}: is no soak of one kind of image; make one: make soak N=10")
    option = "" if image == "vhd" else f" IMAGE={image}"
    ran = {
        "command": f"make soak N={soak['n']}{option}",
        "run": verdict.get("run"),
        "accelerator": verdict.get("accelerator"),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
    }
    return image, ran | soak


def paragraph(image: str, figures: Figures) -> str:
    """The text that README.md or docs/strategies.md has between its comments."""
    sentence = {"vhd": _vhd, "qcow2": _qcow2}[image](figures)
    sentence += f" All figures are in `{PLACES[image][0]}`."
    return textwrap.fill(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)


def replaced(page: str, source: str, text: str) -> str:
    """The page with that text between the comments that name the file of its figures."""
    before, begin, rest = page.partition(f"<!-- figures: {source} -->\n")
    _, end, after = rest.partition("<!-- end of figures -->")
    if not begin or not end:
        raise ValueError(f"no comments that name {source}")
    return f"{before}{begin}{text}\n{end}{after}"


def _vhd(figures: Figures) -> str:
    strategies, n = figures["strategies"], figures["n"]
    cpus = "emulated CPUs" if figures["accelerator"] == "tcg" else "KVM"
    cases = sum(one["runs"] for one in strategies)
    bound = _percent(max(one["bound_95"] for one in strategies))
    safe = [one for one in strategies if one["expected"] == "consistent"]
    margin = min(one["margin_ms"]["min"] for one in safe)
    return (
        f"`{figures['command']}` on {_number(figures['machine']['cpus'])} cores ({cpus}, "
        f"{_number(n)} seeds a case, {cases} cases): every case ended as the table says, {n} of "
        f"{n}, so with {_percent(CONFIDENCE)} confidence fewer than {bound} of runs would not. The "
        f"cures left at least {margin:.1f} ms between the source's last metadata write and the "
        f"destination's read. {_overlaps(strategies)} {_blackout(figures)}"
    )


def _overlaps(strategies: list[Figures]) -> str:
    overlap, early = _named(strategies, "overlap"), _named(strategies, "reopen-early")
    return (
        "With the guard off, `overlap` overlapped by up to "
        f"{-overlap['margin_ms']['min'] / 1000:.1f} s and {_losses(overlap)}; `reopen-early` "
        f"overlapped by up to {-early['margin_ms']['min']:.0f} ms and {_losses(early)}."
    )


def _blackout(figures: Figures) -> str:
    strategies = figures["strategies"]
    activate, overlap = _named(strategies, "activate", guard=True), _named(strategies, "overlap")
    in_flight = min(one["in_flight"]["min"] for one in strategies if one["in_flight"]["min"])
    ratio = figures["ratios"]["activate/overlap blackout"]
    emulated = ", nearly all of it emulation" if figures["accelerator"] == "tcg" else ""
    return (
        f"The guest, with at least {in_flight} requests in flight, stood still for "
        f"{activate['blackout_ms']['median']:.0f} ms with `activate` and "
        f"{overlap['blackout_ms']['median']:.0f} ms with `overlap` (medians, ratio {ratio:.2f})"
        f"{emulated}: deactivate and activate together took "
        f"{activate['switch_ms']['median']:.1f} ms."
    )


def _qcow2(figures: Figures) -> str:
    strategies = figures["strategies"]
    unsafe = [one for one in strategies if one["expected"] == "corrupt"]
    told = "; ".join(f"`{one['name']}` {_losses(one)}" for one in unsafe)
    n = figures["n"]
    return (
        f"`{figures['command']}`: every case ended as the table says, {n} of {n}. With the guard "
        f"off {told}."
    )


def _losses(one: Figures) -> str:
    """What an unsafe order did to the data in the runs of a soak."""
    low, high, whole = one["lost"]["min"], one["lost"]["max"], one["data_whole"]
    if whole == one["runs"]:
        return "broke the rule and lost nothing"
    if not whole:
        if low < high:
            return f"lost {low} to {high} acknowledged writes a run"
        return f"lost {low} acknowledged {'write' if low == 1 else 'writes'} a run"
    writes = "acknowledged write" if high == 1 else "acknowledged writes"
    return f"lost up to {high} {writes} a run, in {whole} of {one['runs']} runs none"


def _named(strategies: list[Figures], name: str, guard: bool = False) -> Figures:
    return next(one for one in strategies if (one["name"], one["guard"]) == (name, guard))


def _percent(rate: float) -> str:
    return f"{rate * 100:.0f} %"


def _number(value: int) -> str:
    return NUMBERS.get(value, str(value))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="directory of the run, as runs/latest")
    image, figures = collect(parser.parse_args().run)
    source, page = (ROOT / name for name in PLACES[image])
    source.write_text(json.dumps(figures, indent=1) + "\n")
    text = replaced(page.read_text(), PLACES[image][0], paragraph(image, figures))
    page.write_text(text)
    print(f"{source.relative_to(ROOT)} and {page.relative_to(ROOT)} have the figures of the run")


if __name__ == "__main__":
    main()
