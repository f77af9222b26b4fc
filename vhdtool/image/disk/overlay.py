"""A disk whose writes go to a temporary file, and are lost when it is closed."""

import errno
import tempfile
from collections.abc import Iterator

from vhdtool.errors import UsageError
from vhdtool.image.create.empty import new_footer, write_empty
from vhdtool.image.disk.base import OpenDisk, Parent
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.ranges import DataRange
from vhdtool.storage import FileStorage, StorageError
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import DEFAULT_BLOCK, MAX_SIZE

_MOST_EXTENTS = 1 << 14


class Overlay(DynamicDisk):
    """A child of an open disk, in a file without a name: nothing is left of it, even by a kill.

    `base` is only read, and is closed with the overlay. Raises StorageError where there can be no
    file in `folder`, UsageError for a disk of more than 2040 GiB.
    """

    last_metadata = None
    """Of the image, which is never written."""

    def __init__(self, base: OpenDisk, folder: str) -> None:
        if base.size > MAX_SIZE:
            raise UsageError(f"a disk of {base.size} bytes: an overlay has at most 2040 GiB")
        storage = _TemporaryFile(folder)
        try:
            header = Header(-(-base.size // DEFAULT_BLOCK), DEFAULT_BLOCK)
            write_empty(storage, new_footer(base.size, DIFFERENCING, False), header, False)
            super().__init__(storage, parent=_Base(base))
        except BaseException:
            storage.close()
            raise

    def finish(self) -> bool:
        """Write nothing: all of it is lost."""
        return False


class _TemporaryFile(FileStorage):
    """A file without a name."""

    def __init__(self, folder: str) -> None:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                super().__init__(f"/proc/self/fd/{file.fileno()}", writable=True)
        except OSError as error:
            raise StorageError(folder, "make a file there", error.errno or errno.EIO) from None
        self.name = f"the temporary file in {folder}"

    def flush(self) -> None:
        """Do nothing: what is here need not survive the process."""


class _Base(Parent):
    """An open disk as a parent."""

    def __init__(self, disk: OpenDisk) -> None:
        self._disk = disk

    def read(self, offset: int, length: int) -> bytes:
        return self._disk.read(offset, max(0, min(length, self._disk.size - offset)))

    def data_ranges(self, start: int, end: int) -> Iterator[DataRange]:
        stop = min(end, self._disk.size)
        while start < stop:
            for length, holds in self._disk.extents(start, stop - start, _MOST_EXTENTS):
                yield length, holds
                start += length
        if end > max(start, stop):
            yield end - max(start, stop), False

    def close(self) -> None:
        self._disk.abandon()
