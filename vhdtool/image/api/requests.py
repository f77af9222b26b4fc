"""Requests to an open image: those in flight, and none after its end."""

import threading

from vhdtool.errors import ClosedError


class Requests:
    """Counts requests in flight: `end` waits for them, and no new one begins afterwards.

    A request to a child is one to the given parent too, so that neither closes under it.
    """

    def __init__(self, name: str, below: "Requests | None", ended: bool = False) -> None:
        self._name = name
        self._below = below
        self._changed = threading.Condition()
        self._in_flight = 0
        self._ended = ended

    def __enter__(self) -> None:
        with self._changed:
            if self._ended:
                raise ClosedError(f"{self._name}: is closed")
            self._in_flight += 1
        if self._below is not None:
            try:
                self._below.__enter__()
            except BaseException:
                self._leave()
                raise

    def __exit__(self, *error: object) -> None:
        if self._below is not None:
            self._below.__exit__()
        self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            if self._ended:
                self._changed.notify_all()

    def end(self) -> bool:
        """Let no request begin, and wait for the others; False if that was done before."""
        with self._changed:
            if self._ended:
                return False
            self._ended = True
            self._changed.wait_for(lambda: not self._in_flight)
        return True
