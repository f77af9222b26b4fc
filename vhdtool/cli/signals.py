"""Ctrl-C, TERM and a hang-up end a command as an error does, so that its clean-up runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_waiting: list[list[int]] = []
"""For each block of `uninterrupted` that is entered, the signals that have come since."""


def clean_up_on_signals() -> None:
    """From now on these signals raise KeyboardInterrupt (Ctrl-C) or SystemExit (128 + number).

    Without a handler TERM ends the process where it is: half-written files, temporary directories
    and child processes stay. A command that ends on purpose, as `serve` does, installs its own
    handlers. What the caller has set to be ignored (nohup) stays ignored.
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What is done within the block is done wholly: signals take effect at its end.

    For what has no name yet by which it could be cleaned up, such as a child being started.
    """
    _waiting.append([])
    try:
        yield
    finally:
        came = _waiting.pop()
        if came:
            _end(came[0], None)


def _end(number: int, frame: FrameType | None) -> None:
    if _waiting:
        _waiting[-1].append(number)
        return
    # A second signal must not interrupt the clean-up that the first one starts.
    for each in _ENDING:
        signal.signal(each, _already_ending)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _already_ending(number: int, frame: FrameType | None) -> None:
    """Does nothing; unlike SIG_IGN it is not passed on to child processes."""
