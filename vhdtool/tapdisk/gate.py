"""The gate before a disk: lets requests through, holds them, or turns them away."""

import errno
import threading
from time import monotonic

from vhdtool.errors import StateError
from vhdtool.nbd.backend import FastPathGate, NoFastPath

DRAIN_PATIENCE = 30.0
"""Seconds that a pause or deactivation waits for requests in flight."""
_POLL_INTERVAL = 0.0002
"""Seconds between polls while draining fast-path requests, which signal no completion."""


class Gate:
    """Modes: "serve", "hold" (requests wait), "refuse" (they fail at once)."""

    def __init__(self, fast_path: FastPathGate | None = None) -> None:
        """`fast_path`: the side of this gate that the fast path's requests pass."""
        self._changed = threading.Condition(threading.Lock())
        self.mode = "refuse"
        self._why = ""
        self._inside = 0
        self.waiting = 0
        """Requests that wait for the gate to open, at most one of each client."""
        self._draining = False
        self.fast_path = fast_path or NoFastPath()

    def enter(self) -> None:
        """Returns when the request may be served; `leave` must follow. Raises OSError (EIO)."""
        with self._changed:
            if self.mode == "hold":
                self.waiting += 1
                while self.mode == "hold":
                    self._changed.wait()
                self.waiting -= 1
            if self.mode == "refuse":
                raise OSError(errno.EIO, self._why or "the disk serves no requests now")
            self._inside += 1

    def leave(self) -> None:
        """The request has been served, or has failed."""
        with self._changed:
            self._inside -= 1
            if self._draining and not self._inside:
                self._changed.notify_all()

    def set(self, mode: str, drain: bool = True, why: str = "") -> str:
        """Changes the mode and returns the old one, when no request is inside any more.

        At once without `drain`, and to "serve": requests may be inside then. `why`: what requests
        that are refused are told. Raises StateError when requests do not end in time; then the
        mode is what it was.
        """
        with self._changed:
            before = self.mode
            self._why = why
            self._turn(mode)
            if not drain or mode == "serve":
                return before
            self._draining = True
            try:
                if not self._drained():
                    if self.mode == mode:
                        self._turn(before)
                    raise StateError(
                        f"{self._inside + self.fast_path.inside()} requests did not end in "
                        f"{DRAIN_PATIENCE:.0f} s; the storage hangs"
                    )
            finally:
                self._draining = False
        return before

    def _turn(self, mode: str) -> None:
        self.mode = mode
        self.fast_path.set(mode == "serve")
        self._changed.notify_all()

    def _drained(self) -> bool:
        """Waits until nobody is inside; False when it takes too long."""
        end = monotonic() + DRAIN_PATIENCE
        # One poll says both whether to wait and how: fast-path requests wake nobody.
        while (theirs := self.fast_path.inside()) or self._inside:
            left = end - monotonic()
            if left <= 0:
                return False
            self._changed.wait(min(left, _POLL_INTERVAL) if theirs else left)
        return True
