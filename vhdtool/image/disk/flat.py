"""Disks that are their file from the first byte on: fixed VHDs and raw images."""

from vhdtool.image.check.admission import require_closed_fixed
from vhdtool.nbd.backend import FastPathLayout
from vhdtool.ranges import merge_data
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.sparse import Contents
from vhdtool.vhd.units import raw_disk_size


class FlatDisk:
    """A disk without a table: nothing to allocate, nothing to write at its end.

    Offsets and lengths are bytes. `raw`: the file is no VHD.
    Raises NotAVhd, CorruptImage, UncleanImage on opening.
    """

    last_metadata: float | None = None
    truncated_to: int | None = None

    def __init__(self, storage: Storage, raw: bool = False) -> None:
        self.storage = storage
        self._raw = raw
        self.size = raw_disk_size(storage.size()) if raw else require_closed_fixed(storage).size

    def fast_path_layout(self, writing: bool) -> FastPathLayout | None:
        """Layout for the fast path, which will only read unless `writing`; None off a file."""
        del writing
        storage = self.storage
        if not isinstance(storage, FileStorage):
            return None
        return FastPathLayout(storage.fileno(), storage.direct, self.size)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; raises ValueError past the end."""
        self._inside(offset, length)
        return self.storage.pread(offset, length).ljust(length, b"\0")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._inside(offset, len(data))
        self.storage.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self.storage.zero(offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Frees what a range takes in the file, where that can be done; it reads as zeros then."""
        self._inside(offset, length)
        self.storage.discard(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """The range is going to be read."""
        self._inside(offset, length)
        self.storage.will_need(offset, length)

    def flush(self) -> None:
        self.storage.flush()

    def extents(self, offset: int, length: int, most: int = 1 << 14) -> list[tuple[int, bool]]:
        """(bytes, may hold data) of the first `most` ranges, as the file system knows them now."""
        self._inside(offset, length)
        contents = Contents(self.storage, self.size if self._raw else None)
        return merge_data(contents.held(offset, length), most)

    def finish(self) -> bool:
        """All that was written is durable; there is no footer to write."""
        self.storage.flush()
        return False

    def abandon(self) -> None:
        self.storage.close()

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{self.storage.name}: {length} bytes at {offset} pass the disk's end")
