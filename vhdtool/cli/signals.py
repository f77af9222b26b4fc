"""Ctrl-C, TERM and a hang-up end a command as an error does, so that its clean-up runs."""

import signal
from types import FrameType
from typing import Never

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def clean_up_on_signals() -> None:
    """From now on these signals raise KeyboardInterrupt (Ctrl-C) or SystemExit (128 + number).

    Without a handler TERM ends the process where it is: half-written files, temporary directories
    and child processes stay. A command that ends on purpose, as `serve` does, installs its own
    handlers. What the caller has set to be ignored (nohup) stays ignored.
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> Never:
    # A second signal must not interrupt the clean-up that the first one starts.
    for each in _ENDING:
        signal.signal(each, _already_ending)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _already_ending(number: int, frame: FrameType | None) -> None:
    """Does nothing; unlike SIG_IGN it is not passed on to child processes."""
