"""A progress line on a terminal, and nothing in a pipe."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY = 0.1
_WIDTH = 30


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
