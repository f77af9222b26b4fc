"""Waits for what signals ask of a server process: its end, and reports of its state."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

_PR_SET_PDEATHSIG = 1


class Ending:
    """Set once, by a signal handler or any thread; `wait` is for the main thread.

    threading.Event does not do: its `set`, called by a handler, waits for ever for a lock when the
    signal arrives inside `wait`. And a signal that arrives just before the main thread blocks would
    be handled only when it wakes up again. Here the signal itself wakes it, by a pipe.
    """

    def __init__(self) -> None:
        self._set = False
        self._report_asked = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def __del__(self) -> None:
        # Not before: `set` may come late, and the number may be another file's by then.
        os.close(self._reader)
        os.close(self._writer)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """TERM and INT set it, and USR1 asks for a report, until the end of the block.

        Enter it before anything that takes time: until then USR1 ends the process.
        """
        handlers = {
            signal.SIGTERM: lambda *_: self.set(),
            signal.SIGINT: lambda *_: self.set(),
            signal.SIGUSR1: lambda *_: self.ask_report(),
        }
        before = [(number, signal.signal(number, one)) for number, one in handlers.items()]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def set_with_parent(self) -> None:
        """TERM comes when the thread that started this process ends. Call it within on_signals."""
        # Imported late: rarely needed.
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            self.set()

    def set(self) -> None:
        self._set = True
        self._wake()

    def ask_report(self) -> None:
        """Makes `wait` report, now or once it is called: several signals may give one report.

        For a handler that must not report itself. Handlers nest: a second signal would wait for
        ever for a lock that the first one has, and a burst would reach the recursion limit.
        """
        self._report_asked = True
        self._wake()

    def _wake(self) -> None:
        # A full pipe wakes `wait` as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def is_set(self) -> bool:
        return self._set

    def wait(self, report: Callable[[], None] = lambda: None) -> None:
        """Returns when it is set; runs signal handlers and `report` meanwhile."""
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            while not self._set:
                if self._report_asked:
                    self._report_asked = False
                    report()
                    continue
                os.read(self._reader, 512)
        finally:
            signal.set_wakeup_fd(before)
