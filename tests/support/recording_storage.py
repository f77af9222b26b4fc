"""A storage that writes down what is done to it, for crash replay."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vhdtool.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Operation:
    """One change: `kind` is write, zero, truncate or flush; `length` in bytes."""

    kind: str
    offset: int = 0
    length: int = 0
    data: bytes = b""

    def apply(self, storage: Storage) -> None:
        """Does it again, to another storage."""
        if self.kind == "write":
            storage.pwrite(self.offset, self.data)
        elif self.kind == "zero":
            storage.zero(self.offset, self.length)
        elif self.kind == "truncate":
            storage.truncate(self.offset)
        elif self.kind == "flush":
            storage.flush()


class RecordingStorage(Storage):
    """Passes everything on to `inner`, and keeps each change in `log`, in order.

    `reads` counts the preads, so that a test can tell what an operation cost. `observer`, when
    given, sees each operation before it is done.
    """

    def __init__(self, inner: Storage, observer: Callable[[Operation], None] | None = None) -> None:
        self.inner = inner
        self.name = inner.name
        self.log: list[Operation] = []
        self.reads = 0
        self._observer = observer

    def _note(self, operation: Operation) -> None:
        if self._observer is not None:
            self._observer(operation)
        self.log.append(operation)

    def pread(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raw = bytes(data)
        self._note(Operation("write", offset, len(raw), raw))
        self.inner.pwrite(offset, raw)

    def zero(self, offset: int, length: int) -> None:
        self._note(Operation("zero", offset, length))
        self.inner.zero(offset, length)

    def truncate(self, size: int) -> None:
        self._note(Operation("truncate", size))
        self.inner.truncate(size)

    def flush(self) -> None:
        self._note(Operation("flush"))
        self.inner.flush()

    def size(self) -> int:
        return self.inner.size()

    def close(self) -> None:
        self.inner.close()


def replay(operations: Iterable[Operation], storage: Storage) -> None:
    """Does all operations again, to another storage."""
    for operation in operations:
        operation.apply(storage)
