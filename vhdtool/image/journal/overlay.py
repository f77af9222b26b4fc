"""A view of an image with some bytes replaced: as it was before a change, or will be after one."""

from vhdtool.storage import Storage
from vhdtool.storage.base import ReadOnlyStorage


class OverlayStorage(ReadOnlyStorage):
    """An image with `pieces` (byte offset, data) in place of its own data. Nothing is written.

    Of pieces that overlap, the later one counts. Closing it closes `inner`.
    """

    def __init__(
        self, inner: Storage, pieces: list[tuple[int, bytes]], size: int | None = None
    ) -> None:
        self.inner = inner
        self.name = inner.name
        self.is_block_device = inner.is_block_device
        self._pieces = pieces
        self._size = inner.size() if size is None else size

    def pread(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        data = bytearray(self.inner.pread(offset, end - offset).ljust(end - offset, b"\0"))
        for start, piece in self._pieces:
            first, last = max(start, offset), min(start + len(piece), end)
            if first < last:
                data[first - offset : last - offset] = piece[first - start : last - start]
        return bytes(data)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self.inner.close()
