"""Bounded waits for what another process or thread does, which gives no event to wait for."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    seconds: float = 10.0,
    *,
    failure: str = "the condition did not become true",
    process: "subprocess.Popen[bytes] | subprocess.Popen[str] | None" = None,
    log: Path | None = None,
    interval: float = 0.01,
) -> T:
    """Return the first true value of `condition`; fail when none comes within `seconds`.

    With `process`, fail as soon as that has ended. The failure shows the text of `log`.
    """

    def why(what: str) -> str:
        return "\n".join([f"{failure}: {what}", *([log.read_text()] if log else [])])

    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, why("the process has ended")
        assert time.monotonic() < deadline, why(f"{seconds:g} s are over")
        time.sleep(interval)
    return value


def wait_until_stable(
    figure: Callable[[], int], tolerance: int = 0, interval: float = 0.05, most: int = 100
) -> int:
    """Return `figure()` once it has changed by no more than `tolerance` in an interval.

    After `most` intervals, return what it is then.
    """
    value = figure()
    for _ in range(most):
        time.sleep(interval)
        before, value = value, figure()
        if abs(value - before) <= tolerance:
            break
    return value
