"""Arguments of the tools behind the make targets."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path


def at_least_one(text: str) -> int:
    """A number of cases: none would prove nothing, and end as if all was well."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return value


def cases_of(paths: Sequence[Path]) -> list[Path]:
    """The case directories among, and inside, these directories. Raises SystemExit for others."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / "case.json").exists() else []
        inside = inside or sorted(file.parent for file in path.glob("*/case.json"))
        if not inside:
            raise SystemExit(f"{path}: neither a case nor a run with cases")
        found += inside
    return found
