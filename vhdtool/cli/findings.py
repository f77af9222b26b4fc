"""Findings and verdicts of a check as lines of text, for one image and for many."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vhdtool.errors import VhdtoolError
from vhdtool.image.metadata.findings import VERDICTS, Finding
from vhdtool.ranges import merge

if TYPE_CHECKING:
    from vhdtool.image.chain.check import ChainReport

NOT_CHECKED = "not checked"
MOST_LINES = 5
"""Lines for the findings of one code: one damaged table can have thousands."""
_WORST_FIRST = (2, 1, 3, 0)
"""Exit codes of `check`: an image that could not be checked may be lost."""
_COLORS = {
    "corrupt": "red",
    NOT_CHECKED: "red",
    "unclean": "yellow",
    "info": "cyan",
    "consistent": "green",
}


def colored(word: str) -> str:
    """A severity or verdict in its color, if the output is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return word
    return click.style(word, fg=_COLORS.get(word), bold=word != "info")


def finding_lines(findings: Iterable[Finding], labels: dict[str, str] | None = None) -> list[str]:
    """A line for each finding. Findings of one code about neighbouring blocks share a line.

    `labels`: what the line begins with, by severity; the severity itself by default.
    """
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        kinds.setdefault((one.severity, one.code), []).append(one)
    lines = []
    for (severity, code), found in kinds.items():
        start = f"{labels[severity] if labels else colored(severity)}: {code}: "
        groups = _neighbours(found)
        lines += [start + _text(group) for group in groups[:MOST_LINES]]
        if rest := sum(len(group) for group in groups[MOST_LINES:]):
            lines.append(f"{start}{rest} more of these; `check --json` lists each")
    return lines


def _neighbours(findings: list[Finding]) -> list[list[Finding]]:
    """Groups of findings: those about one block, or about blocks that follow one another."""
    # Findings without a block, as the last one ("and 7 more"), stay behind the others.
    ordered = sorted(findings, key=lambda one: (one.block is None, one.block or 0))
    groups: list[list[Finding]] = []
    for one in ordered:
        last = groups[-1][-1].block if groups else None
        if one.block is not None and last is not None and one.block - last <= 1:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _text(group: list[Finding]) -> str:
    first = group[0]
    text = first.message
    if first.offset is not None:
        text += f" (byte {first.offset})"
    if len(group) > 1:
        blocks = f"block {first.block}"
        if group[-1].block != first.block:
            blocks = f"blocks {first.block} to {group[-1].block}"
        text = f"{len(group)} findings about {blocks}; the first: {text}"
    ranges = merge((one.sectors[0], sum(one.sectors)) for one in group if one.sectors is not None)
    if ranges:
        # Not every sector between the first and the last need be affected.
        within = "" if len(ranges) == 1 else "within "
        text += f"; {within}guest sectors {ranges[0][0]} to {ranges[-1][1] - 1}"
    return text


def next_steps(advice: list[str]) -> list[str]:
    """Lines of advice, the most urgent one last: it is next to the prompt."""
    if not advice:
        return []
    return [*(f"help: {one}" for one in reversed(advice[1:])), f"next: {advice[0]}"]


@dataclass(slots=True)
class Verdict:
    """The verdict on one of many images; `text` is the worst finding, or why there was no check."""

    image: str
    word: str
    exit_code: int
    text: str = ""
    value: dict[str, Any] | None = None
    """The report as JSON, where `checked` was asked to keep it."""

    def line(self) -> str:
        """Path, verdict and worst finding in one line."""
        return f"{self.image}: {colored(self.word)}{self.text and f': {self.text}'}"

    def as_dict(self) -> dict[str, Any]:
        """The report as `check --json` prints it; without a check, the reason."""
        if self.value is not None:
            return self.value
        return {
            "image": self.image,
            "verdict": self.word,
            "exit_code": self.exit_code,
            "error": self.text,
        }


def checked(image: str, check: "Callable[[], ChainReport]", as_json: bool = False) -> Verdict:
    """Check one of many images; that it cannot be checked is a verdict too."""
    try:
        report = check()
    except VhdtoolError as error:
        return Verdict(image, NOT_CHECKED, 1, str(error).removeprefix(f"{image}: "))
    found = [("", one) for one in report.links]
    for each in report.reports:
        # Findings about a parent name it.
        name = "" if each is report.reports[0] else f"{each.name}: "
        found += [(name, one) for one in each.findings]
    faults = [(name, one) for name, one in found if one.severity != "info"]
    text = ""
    if faults:
        name, first = min(faults, key=lambda pair: pair[1].severity != "corrupt")
        text = f"{name}{first.code}: {first.message.removeprefix(f'{image}: ')}"
    if len(faults) > 1:
        text += f" (and {len(faults) - 1} more)"
    value = report.as_dict() if as_json else None
    return Verdict(image, VERDICTS[report.exit_code], report.exit_code, text, value)


def summary_lines(verdicts: list[Verdict]) -> list[str]:
    """How many images have which verdict, and, unless all are consistent, what to do next."""
    count = Counter(one.word for one in verdicts)
    words = ("corrupt", NOT_CHECKED, "unclean", "consistent")
    parts = [f"{count[word]} {colored(word)}" for word in words if count[word]]
    images = "1 image" if len(verdicts) == 1 else f"{len(verdicts)} images"
    lines = [f"{images}: {', '.join(parts) or 'none'}"]
    for code in _WORST_FIRST[:-1]:
        bad = [one for one in verdicts if one.exit_code == code]
        if bad:
            return [*lines, f"next: {_next(bad[0])}"]
    return lines


def _next(one: Verdict) -> str:
    image = shlex.quote(one.image)
    if one.exit_code == 1:
        return f"{image} could not be checked; its line says why"
    return f"vhdtool check {image}: lists all its faults, and the last line says what helps"


def worst(codes: Iterable[int]) -> int:
    """The exit code for several images: corrupt, then not checked, then unclean."""
    found = set(codes)
    return next((code for code in _WORST_FIRST if code in found), 0)
