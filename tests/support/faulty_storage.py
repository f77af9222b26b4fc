"""A storage that fails when it is told to."""

import errno
from collections.abc import Callable

from vhdtool.storage.base import Storage, StorageError

Fault = Callable[[str, int, int], int | None]
"""(kind, offset, length) -> an errno to fail with, or None to let it pass."""


class FaultyStorage(Storage):
    """Passes everything on to `inner` unless `fault` names an errno for it.

    A failing write first stores `torn` bytes of its data, as a power cut would.
    `kind` is one of read, write, zero, truncate, flush, size.
    """

    def __init__(self, inner: Storage, fault: Fault, torn: int = 0) -> None:
        self.inner = inner
        self.name = inner.name
        self.torn = torn
        self._fault = fault

    def _pass(self, kind: str, offset: int = 0, length: int = 0) -> None:
        number = self._fault(kind, offset, length)
        if number is not None:
            raise StorageError(self.name, f"{kind} {length} bytes at {offset}", number)

    def pread(self, offset: int, length: int) -> bytes:
        self._pass("read", offset, length)
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._pass("write", offset, len(data))
        except StorageError:
            if self.torn:
                self.inner.pwrite(offset, bytes(data)[: self.torn])
            raise
        self.inner.pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._pass("zero", offset, length)
        self.inner.zero(offset, length)

    def truncate(self, size: int) -> None:
        self._pass("truncate", size)
        self.inner.truncate(size)

    def flush(self) -> None:
        self._pass("flush")
        self.inner.flush()

    def size(self) -> int:
        self._pass("size")
        return self.inner.size()

    def close(self) -> None:
        self.inner.close()


def fail_after(operations: int, number: int = errno.EIO, kinds: str = "write zero") -> Fault:
    """A fault that lets so many operations of `kinds` pass and fails every later one."""
    left = operations

    def fault(kind: str, offset: int, length: int) -> int | None:
        nonlocal left
        if kind not in kinds.split():
            return None
        left -= 1
        return number if left < 0 else None

    return fault
