"""Output that several commands share: JSON, sizes, tables, a progress bar."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from vhdtool.errors import UsageError

_EVERY = 0.1


_WIDTH = 30


def print_json(value: Any) -> None:
    """Compact enough for a pipe, readable enough for a person."""
    click.echo(json.dumps(value, indent=2))


def human(size: int) -> str:
    """A size in words: `2 MiB (2097152 bytes)`."""
    if size < 1024:
        return f"{size} bytes"
    step = min((size.bit_length() - 1) // 10, 4)
    return f"{size / (1 << 10 * step):.4g} {('', 'KiB', 'MiB', 'GiB', 'TiB')[step]} ({size} bytes)"


def rows(pairs: list[tuple[str, object]]) -> str:
    """A two-column table; names are padded to the longest."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


def load_json(path: str) -> Any:
    """A JSON file. Raises UsageError when it is none."""
    with open(path, "rb") as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not JSON: {error}") from None


@contextmanager
def progress_bar(total: int, what: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields a function to be called with the bytes done so far."""
    if quiet or total <= 0 or not sys.stderr.isatty():
        yield lambda done: None
        return
    last = 0.0

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY:
            last = now
            _draw(what, min(done / total, 1.0))

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _draw(what: str, part: float) -> None:
    full = int(part * _WIDTH)
    sys.stderr.write(f"\r{what} [{'#' * full}{'.' * (_WIDTH - full)}] {part:4.0%}")
    sys.stderr.flush()
