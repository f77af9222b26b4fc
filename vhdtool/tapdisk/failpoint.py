"""Kill points: VHDTOOL_FAILPOINT=name[:n] kills the process when it gets there the n-th time.

For crash tests only. Without the variable a point costs one comparison.
"""

import os
import signal
import threading

NAMES = (
    "space-zeroed",
    "space-preallocated",
    "bat-written",
    "data-written",
    "bitmap-written",
    "close-begun",
    "batmap-written",
    "footer-written",
    "file-truncated",
    "image-closed",
    "lease-released",
    "lease-taken",
)
"""What the process has just done: for an allocation, a write, a close, an activation."""


class _Trap:
    """Counts the visits of one kill point."""

    def __init__(self, setting: str) -> None:
        self.point, _, count = setting.partition(":")
        self._left = int(count) if count.isdigit() else 1
        self._lock = threading.Lock()

    def visit(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


_trap = _Trap(os.environ.get("VHDTOOL_FAILPOINT", ""))


def reached(point: str) -> None:
    """Kills the process as `kill -9` does, if this is the point and the visit."""
    if point == _trap.point:
        _trap.visit()
