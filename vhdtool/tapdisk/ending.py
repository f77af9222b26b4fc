"""Waits for the end of a server process, which a signal or another thread asks for."""

import contextlib
import os
import signal


class Ending:
    """Set once, by a signal handler or any thread; `wait` is for the main thread.

    threading.Event does not do: its `set`, called by a handler, waits for ever for a lock when the
    signal arrives inside `wait`. And a signal that arrives just before the main thread blocks would
    be handled only when it wakes up again. Here the signal itself wakes it, by a pipe.
    """

    def __init__(self) -> None:
        self._set = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def __del__(self) -> None:
        # Not before: `set` may come late, and the number may be another file's by then.
        os.close(self._reader)
        os.close(self._writer)

    def set(self) -> None:
        self._set = True
        # A full pipe wakes `wait` as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def is_set(self) -> bool:
        return self._set

    def wait(self) -> None:
        """Returns when it is set; runs signal handlers meanwhile."""
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            while not self._set:
                os.read(self._reader, 512)
        finally:
            signal.set_wakeup_fd(before)
