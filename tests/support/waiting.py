"""Bounded waiting for what another process or thread does, which gives no event to wait for."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    seconds: float = 10.0,
    *,
    failure: str = "the condition did not become true",
    process: "subprocess.Popen[bytes] | subprocess.Popen[str] | None" = None,
    interval: float = 0.01,
) -> T:
    """Return the first true value of `condition`; fail when none comes within `seconds`.

    With `process`, fail as soon as that has ended.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, f"{failure}: the process has ended"
        assert time.monotonic() < deadline, f"{failure} within {seconds:g} s"
        time.sleep(interval)
    return value
