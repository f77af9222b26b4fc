"""Disks whose guest bytes are file bytes: fixed VHDs and raw images."""

from vhdtool.image.check.admission import require_closed_fixed
from vhdtool.image.disk.base import OpenDisk, require_inside
from vhdtool.nbd.backend import FastPathLayout
from vhdtool.ranges import DataRange, merge_data
from vhdtool.storage import Storage
from vhdtool.storage.sparse import Contents
from vhdtool.vhd.units import raw_disk_size


class FlatDisk(OpenDisk):
    """A disk without a BAT: it allocates no block, and writes no footer at its end.

    `raw`: the file is not a VHD. Raises NotAVhd, CorruptImage, UncleanImage on opening.
    """

    def __init__(self, storage: Storage, raw: bool = False) -> None:
        self.storage = storage
        self._raw = raw
        self.size = raw_disk_size(storage.size()) if raw else require_closed_fixed(storage).size

    def fast_path_layout(self, writing: bool) -> FastPathLayout | None:
        fd = self.storage.fileno()
        return None if fd is None else FastPathLayout(fd, self.storage.direct, self.size)

    def read(self, offset: int, length: int) -> bytes:
        self._inside(offset, length)
        return self.storage.pread(offset, length).ljust(length, b"\0")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._inside(offset, len(data))
        self.storage.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self.storage.zero(offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Free the space of a range where that is cheap; it reads as zeros then."""
        self._inside(offset, length)
        self.storage.discard(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self.storage.will_need(offset, length)

    def flush(self) -> None:
        self.storage.flush()

    def extents(self, offset: int, length: int, most: int = 1 << 14) -> list[DataRange]:
        self._inside(offset, length)
        contents = Contents(self.storage, self.size if self._raw else None)
        return merge_data(contents.data_ranges(offset, length), most)

    def finish(self) -> bool:
        """Make all durable; there is no footer to write."""
        self.storage.flush()
        return False

    def abandon(self) -> None:
        self.storage.close()

    def _inside(self, offset: int, length: int) -> None:
        require_inside(self.storage.name, self.size, offset, length)
