"""JSON, sizes, tables and the progress bar of the commands' output."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from vhdtool.errors import UsageError

_INTERVAL = 0.1
_WIDTH = 30


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def size_text(size: int) -> str:
    """Format a size as `2 MiB (2097152 bytes)`."""
    if size < 1024:
        return f"{size} bytes"
    step = min((size.bit_length() - 1) // 10, 4)
    return f"{size / (1 << 10 * step):.4g} {('', 'KiB', 'MiB', 'GiB', 'TiB')[step]} ({size} bytes)"


def table_text(pairs: list[tuple[str, object]]) -> str:
    """Format a table of two columns."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


def load_json(path: str) -> Any:
    """Read a JSON file. Raises UsageError when it is not one."""
    with open(path, "rb") as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not JSON: {error}") from None


@contextmanager
def progress_bar(total: int, label: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the number of bytes done; it draws on a terminal only."""
    if quiet or total <= 0 or not sys.stderr.isatty():
        yield lambda done: None
        return
    last = 0.0

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            _draw(label, min(done / total, 1.0))

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _draw(label: str, share: float) -> None:
    full = int(share * _WIDTH)
    sys.stderr.write(f"\r{label} [{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%}")
    sys.stderr.flush()
