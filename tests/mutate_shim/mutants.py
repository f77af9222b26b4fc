"""Shims that are wrong on purpose: small patches of the shim's source, by exact text.

Each file in shims/ is a defect that a shim could have while a switch drains, queues or takes over
requests: what the shim does wrong, the cases that can show it, and for each place the file, its
lines, and what comes instead. A mutant is made in a copy of the package; the product itself has no
way to switch one on.
"""

from dataclasses import dataclass
from pathlib import Path

SHIMS = Path(__file__).parent / "shims"
Patch = tuple[str, str, str]
"""(file below vhdtool/, its text, what comes instead): the text must be there exactly once."""


@dataclass(frozen=True)
class Mutant:
    """`cases` are the strategies that can show it, run in this order until one is not green."""

    name: str
    what: str
    cases: tuple[str, ...]
    patches: tuple[Patch, ...]


def read(path: Path) -> Mutant:
    """A file of shims/."""
    fields: dict[str, str] = {}
    patches: list[Patch] = []
    parts: dict[str, str] = {}
    part = ""
    for line in path.read_text().splitlines(keepends=True):
        if line == "<<<<\n":
            part, parts = "old", {"old": "", "new": ""}
        elif line == "====\n":
            part = "new"
        elif line == ">>>>\n":
            patches.append((fields["file"], parts["old"], parts["new"]))
            part = ""
        elif part:
            parts[part] += line
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    cases = tuple(word.strip() for word in fields["cases"].split(","))
    return Mutant(path.stem, fields["what"], cases, tuple(patches))


MUTANTS = tuple(read(path) for path in sorted(SHIMS.glob("*.txt")))
