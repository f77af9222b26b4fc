"""JSON, tables and the progress bar of the commands' output."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from vhdtool.errors import UsageError
from vhdtool.vhd.units import short_size

_INTERVAL = 0.1
_FIRST_FIGURES = 1.0
"""Seconds until rate and time left are shown; before, they would jump."""
_WIDTH, _NARROWEST, _LABEL = 30, 10, 20
"""Columns of a bar, of the narrowest one that is shown, and what it leaves to the label."""


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def table_text(pairs: list[tuple[str, object]]) -> str:
    """Format a table of two columns."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


def load_json(path: str) -> Any:
    """Read a JSON file, or standard input for `-`. Raises UsageError when it is not one."""
    with click.open_file(path, "rb") as file:
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
    # It loads six modules, a tenth of a short command's time.
    from shutil import get_terminal_size

    start = last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            columns = get_terminal_size().columns
            sys.stderr.write(f"\r{progress_text(label, done, total, now - start, columns)}\x1b[K")
            sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def progress_text(label: str, done: int, total: int, seconds: float, columns: int) -> str:
    """A bar with share, bytes a second and time left; rate and time are those since the start."""
    share = min(done / total, 1.0)
    figures = f" {share:4.0%}"
    if done and seconds >= _FIRST_FIGURES:
        rate = done / seconds
        figures += f"  {short_size(rate)}/s  {_time_text((total - done) / rate)} left"
    # A full last column would wrap the line.
    room = columns - 1 - len(figures)
    width = max(min(_WIDTH, room - _LABEL), 0)
    bar = f" [{'#' * int(share * width):.<{width}}]" if width >= _NARROWEST else ""
    room -= len(bar)
    if len(label) > room:
        # The end of a path says more than its beginning.
        label = f"…{label[len(label) - room + 1 :]}" if room > 1 else ""
    return f"{label}{bar}{figures}"


def _time_text(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
