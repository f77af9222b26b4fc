"""Kill points: with VHDTOOL_FAILPOINT=name[:n] the process dies the n-th time it gets there.

For crash tests only. Without the variable a point costs one comparison.
"""

import os
import signal
import threading

NAMES = (
    "allocate-zeroed",
    "allocate-room",
    "allocate-bat",
    "bitmap-data",
    "bitmap-written",
    "close-begun",
    "close-batmap",
    "close-footer",
    "close-truncated",
    "closed",
    "released",
    "leased",
)


class _Trap:
    """Counts the visits to one point."""

    def __init__(self, wish: str) -> None:
        self.point, _, count = wish.partition(":")
        self._left = int(count) if count.isdigit() else 1
        self._lock = threading.Lock()

    def visit(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


_trap = _Trap(os.environ.get("VHDTOOL_FAILPOINT", ""))


def reached(point: str) -> None:
    """Dies here, as by kill -9, when it is this point's turn."""
    if point == _trap.point:
        _trap.visit()
