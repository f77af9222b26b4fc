"""A qcow2 image, opened for reading and writing by QEMU's own code in a child process.

A block is here the range that one L2 table maps. A new block changes the L1 table, which is read
when the image is opened, as a new block of a VHD changes the BAT.
"""

import threading
from collections.abc import Callable
from time import monotonic

from vhdtool.image.disk.base import Hooks, OpenDisk, require_inside
from vhdtool.image.disk.qemu_nbd import QemuNbd
from vhdtool.image.metadata.qcow2 import read_header
from vhdtool.storage import Storage


class Qcow2Disk(OpenDisk):
    """One open qcow2 image.

    `exclusive`: takes QEMU's lock as well, as nobody else may have the image. Raises UsageError for
    a storage without a descriptor, CorruptImage, UnsupportedImage, StorageError, or VhdtoolError
    with the message of qemu-nbd.
    """

    last_metadata: float | None = None

    def __init__(
        self,
        file: Storage,
        *,
        exclusive: bool,
        hooks: Hooks | None = None,
    ) -> None:
        """`file` is closed with the disk: the lock on the image, if any, is on its descriptor."""
        self._file = file
        header = read_header(file)
        self.block_bytes = header.cluster * header.table_entries
        self.hooks = hooks or Hooks()
        self._server = QemuNbd(file, locked=exclusive)
        self._disk = self._server.storage
        self.size = self._disk.size()
        self._allocated: set[int] = set()
        """Blocks that are known to be allocated."""
        self._allocating = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        self._inside(offset, length)
        return self._disk.pread(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._inside(offset, len(data))
        self._write(offset, len(data), lambda: self._disk.pwrite(offset, data))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self._write(offset, length, lambda: self._disk.zero(offset, length))

    def trim(self, offset: int, length: int) -> None:
        """Free whole clusters in the file; they read as zeros then."""
        self._inside(offset, length)
        self.hooks.may_write_metadata()
        self._disk.trim(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """Do nothing: qemu-nbd has no such request."""
        self._inside(offset, length)

    def _write(self, offset: int, length: int, write: Callable[[], None]) -> None:
        """Write, and report the blocks that this allocates."""
        if not length:
            return
        blocks = range(offset // self.block_bytes, (offset + length - 1) // self.block_bytes + 1)
        if self._allocated.issuperset(blocks):
            write()
            return
        with self._allocating:
            new = [block for block in blocks if block not in self._allocated and self._empty(block)]
            if new:
                self.hooks.may_write_metadata()
            write()
            self._allocated.update(blocks)
        for block in new:
            self.hooks.allocated(block, 0)

    def _empty(self, block: int) -> bool:
        start = block * self.block_bytes
        length = min(self.block_bytes, self.size - start)
        return not any(data for _, data in self._disk.extents(start, length, 1 << 16))

    def flush(self) -> None:
        """Flush, at which QEMU writes its tables: so the lease must still be ours."""
        self.hooks.may_write_metadata()
        self._disk.flush()
        self.last_metadata = monotonic()

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        self._inside(offset, length)
        return self._disk.extents(offset, length, most)

    def finish(self) -> bool:
        """Make all durable and have QEMU close the image, which has no footer."""
        self.flush()
        self._server.stop()
        self.last_metadata = monotonic()
        return False

    def abandon(self) -> None:
        self._server.kill()
        self._file.close()

    def _inside(self, offset: int, length: int) -> None:
        require_inside(self._disk.name, self.size, offset, length)
