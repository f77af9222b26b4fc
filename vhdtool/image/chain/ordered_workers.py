"""A few threads that share one stream of work items.

They gain where the kernel copies data, which it does without Python's global lock.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
THREADS = min(4, os.cpu_count() or 1)


def for_each(items: Iterable[T], make: Callable[[], Callable[[T], None]], threads: int = 0) -> None:
    """Call a worker for each item; `make` makes the worker of one thread.

    Items are taken in order. The first error stops all threads and is raised.
    """
    count = threads or THREADS
    source = _Source(iter(items))
    others = [
        threading.Thread(target=source.run, args=(make(),), daemon=True) for _ in range(count - 1)
    ]
    for thread in others:
        thread.start()
    source.run(make())
    for thread in others:
        thread.join()
    if source.error is not None:
        raise source.error


class _Source:
    """The stream of items, and the first error of a worker."""

    def __init__(self, items: "Iterator[T]") -> None:
        self._items = items
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def run(self, work: Callable[[T], None]) -> None:
        """Work on items until there are no more, or a worker failed."""
        try:
            while True:
                with self._lock:
                    if self.error is not None:
                        return
                    item = next(self._items, self)
                if item is self:
                    return
                work(item)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - it is raised again by the caller
            with self._lock:
                self.error = self.error or error


class Turns:
    """Lets workers execute one step in the order of their tickets, which count from 0."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()
        self._broken = False

    def wait(self, ticket: int) -> bool:
        """Wait for the turn of a ticket. Returns False when another worker failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._next == ticket)
            return not self._broken

    def done(self) -> None:
        """End a turn; the next ticket's begins."""
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def break_up(self) -> None:
        """Wake all waiting workers after a failure."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
