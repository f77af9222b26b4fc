"""Sparse memory, so that a test may use a disk of terabytes."""

import errno
from collections.abc import Iterator

from vhdtool.storage.base import Storage, StorageError

PAGE = 4096


class MemoryStorage(Storage):
    """Bytes in pages of 4 KiB; pages that were never written take no memory.

    >>> disk = MemoryStorage(b"abc")
    >>> disk.pwrite(5, b"f")
    >>> disk.pread(0, 10)
    b'abc\\x00\\x00f'
    """

    def __init__(self, data: bytes = b"", name: str = "memory", writable: bool = True) -> None:
        self.name = name
        self.writable = writable
        self._pages: dict[int, bytearray] = {}
        self._size = 0
        if data:
            self._store(0, memoryview(data))

    def pread(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        parts = []
        while offset < end:
            number, skip = divmod(offset, PAGE)
            count = min(PAGE - skip, end - offset)
            page = self._pages.get(number)
            parts.append(bytes(count) if page is None else bytes(page[skip : skip + count]))
            offset += count
        return b"".join(parts)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if not self.writable:
            raise StorageError(self.name, "write", errno.EBADF)
        self._store(offset, memoryview(data).cast("B"))

    def _store(self, offset: int, data: memoryview) -> None:
        position = 0
        while position < len(data):
            number, skip = divmod(offset + position, PAGE)
            count = min(PAGE - skip, len(data) - position)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(PAGE)
            page[skip : skip + count] = data[position : position + count]
            position += count
        self._size = max(self._size, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        if not self.writable:
            raise StorageError(self.name, "zero", errno.EBADF)
        if length <= 0:
            return
        end = offset + length
        self._clear(offset, end)
        self._size = max(self._size, end)

    def _clear(self, start: int, end: int) -> None:
        for number in self._touched(start, end):
            first = max(start - number * PAGE, 0)
            last = min(end - number * PAGE, PAGE)
            if first == 0 and last == PAGE:
                del self._pages[number]
            else:
                self._pages[number][first:last] = bytes(last - first)

    def _touched(self, start: int, end: int) -> list[int]:
        low, high = start // PAGE, -(-end // PAGE)
        if high - low < len(self._pages):
            return [n for n in range(low, high) if n in self._pages]
        return [n for n in self._pages if low <= n < high]

    def truncate(self, size: int) -> None:
        if not self.writable:
            raise StorageError(self.name, "truncate", errno.EBADF)
        if size < self._size:
            self._clear(size, -(-self._size // PAGE) * PAGE)
        self._size = size

    def flush(self) -> None:
        """Do nothing: memory has no cache."""

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        """Keep the bytes, so that a test can read them."""

    def copy(self) -> "MemoryStorage":
        """Return an independent storage with the same bytes."""
        twin = MemoryStorage(name=self.name, writable=True)
        twin._pages = {number: bytearray(page) for number, page in self._pages.items()}
        twin._size = self._size
        return twin

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the pages that are stored, up to the size, in rising order."""
        for number in sorted(self._pages):
            yield number * PAGE, self.pread(number * PAGE, PAGE)

    def getvalue(self) -> bytes:
        """Return all bytes."""
        return self.pread(0, self._size)
