"""The gate before a disk: serves requests, holds them, or refuses them."""

import errno
import threading
from time import monotonic

from vhdtool.errors import StateError
from vhdtool.nbd.backend import FastPathGate, NoFastPath
from vhdtool.tapdisk.states import GateMode

DRAIN_PATIENCE = 30.0
"""Seconds that a pause or deactivation waits for requests in flight."""
_HOLD, _REFUSE = GateMode.HOLD, GateMode.REFUSE
"""Constants for each request: an enum's member costs a dictionary lookup in Python 3.11."""
_POLL_INTERVAL = 0.0002
"""Seconds between polls while draining fast-path requests, which signal no completion."""


class Gate:
    """Admits requests by its mode, and counts those in flight."""

    def __init__(self, fast_path: FastPathGate | None = None) -> None:
        """`fast_path`: the side of this gate that the fast path's requests pass."""
        self._changed = threading.Condition(threading.Lock())
        self.mode = GateMode.REFUSE
        self._why = ""
        self.inside = 0
        """Requests in flight that Python serves."""
        self.waiting = 0
        """Requests that wait for the gate to open, at most one of each client."""
        self._draining = False
        self.fast_path: FastPathGate = fast_path or NoFastPath()

    def enter(self) -> None:
        """Returns when the request may be served; `leave` must follow. Raises OSError (EIO)."""
        with self._changed:
            if self.mode is _HOLD:
                self.waiting += 1
                while self.mode is _HOLD:
                    self._changed.wait()
                self.waiting -= 1
            if self.mode is _REFUSE:
                raise OSError(errno.EIO, self._why or "the disk serves no requests now")
            self.inside += 1

    def leave(self) -> None:
        """Counts a request out that was served, or failed."""
        with self._changed:
            self.inside -= 1
            if self._draining and not self.inside:
                self._changed.notify_all()

    def set(self, mode: GateMode, drain: bool = True, why: str = "") -> GateMode:
        """Changes the mode, waits until no request is in flight, and returns the old mode.

        Does not wait without `drain`, nor for SERVE. `why`: the error of refused requests. Raises
        StateError when requests do not end in time; the mode is the old one then.
        """
        with self._changed:
            before = self.mode
            self._why = why
            self._switch(mode)
            if not drain or mode is GateMode.SERVE:
                return before
            self._draining = True
            try:
                if not self._drained():
                    if self.mode is mode:
                        self._switch(before)
                    raise StateError(
                        f"{self.inside + self.fast_path.inside()} requests did not end in "
                        f"{DRAIN_PATIENCE:.0f} s; the storage hangs"
                    )
            finally:
                self._draining = False
        return before

    def _switch(self, mode: GateMode) -> None:
        self.mode = mode
        self.fast_path.set(mode is GateMode.SERVE)
        self._changed.notify_all()

    def _drained(self) -> bool:
        """Waits until no request is in flight; False when that takes too long."""
        end = monotonic() + DRAIN_PATIENCE
        # Read once a round: a second read could return 0, and the wait would have no poll interval.
        while (in_fast_path := self.fast_path.inside()) or self.inside:
            left = end - monotonic()
            if left <= 0:
                return False
            self._changed.wait(min(left, _POLL_INTERVAL) if in_fast_path else left)
        return True
