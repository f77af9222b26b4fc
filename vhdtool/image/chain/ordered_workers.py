"""A few threads over one stream of work: the kernel copies outside Python's lock."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
THREADS = min(4, os.cpu_count() or 1)


def for_each(items: Iterable[T], make: Callable[[], Callable[[T], None]], threads: int = 0) -> None:
    """Calls a worker for each item; `make` builds one worker for each thread.

    Items are drawn in order, one thread at a time. The first error stops all and is raised here.
    """
    count = threads or THREADS
    source = _Source(iter(items))
    others = [
        threading.Thread(target=source.drain, args=(make(),), daemon=True) for _ in range(count - 1)
    ]
    for thread in others:
        thread.start()
    source.drain(make())
    for thread in others:
        thread.join()
    if source.error is not None:
        raise source.error


class _Source:
    """The stream, and the first error that ended it."""

    def __init__(self, items: "Iterator[T]") -> None:
        self._items = items
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def drain(self, work: Callable[[T], None]) -> None:
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
    """Lets the workers take one step each in the order of their tickets, from 0."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()
        self._broken = False

    def wait(self, ticket: int) -> bool:
        """Returns when it is this ticket's turn; False when another worker failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._next == ticket)
            return not self._broken

    def done(self) -> None:
        """The next ticket may go on."""
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def break_up(self) -> None:
        """Nobody needs to wait any more: something failed."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
