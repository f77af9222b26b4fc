"""Clean-up when Ctrl-C, TERM or a hang-up ends a command: the signals raise exceptions."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_waiting: list[list[int]] = []
"""Signals that arrived since, for each active block of `uninterrupted`."""


def clean_up_on_signals() -> None:
    """Make the signals raise KeyboardInterrupt (Ctrl-C) or SystemExit (128 + number).

    Without a handler TERM ends the process at once: half-written files, temporary directories and
    child processes stay. A command that handles signals, such as `serve`, installs its own
    handlers. Signals that the caller ignores (nohup) stay ignored.
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals until the end of the block.

    For steps that cannot be cleaned up halfway, such as the start of a child process.
    """
    _waiting.append([])
    try:
        yield
    finally:
        arrived = _waiting.pop()
        if arrived:
            _end(arrived[0], None)


def _end(number: int, frame: FrameType | None) -> None:
    if _waiting:
        _waiting[-1].append(number)
        return
    # A second signal must not interrupt the clean-up after the first one.
    for each in _ENDING:
        signal.signal(each, _already_ending)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _already_ending(number: int, frame: FrameType | None) -> None:
    """Ignore a signal; unlike SIG_IGN a handler is not inherited by child processes."""
