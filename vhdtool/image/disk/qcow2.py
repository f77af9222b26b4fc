"""A qcow2 image opened for reading and writing: QEMU's own code, in a child process.

What a block is here: the range that one L2 table maps. A new block changes the L1 table, which is
read when the image is opened, as a new block of a VHD changes the BAT.
"""

import threading
from collections.abc import Callable
from time import monotonic

from vhdtool.image.disk.hooks import Hooks
from vhdtool.image.disk.qemu_nbd import QemuNbd
from vhdtool.image.metadata.qcow2 import read_header
from vhdtool.storage import FileStorage


class Qcow2Disk:
    """One open image. Offsets and lengths are bytes.

    `exclusive`: nobody else may have it; then QEMU's lock is taken as well. Raises CorruptImage,
    UnsupportedImage, StorageError, or VhdtoolError with what qemu-nbd says.
    """

    truncated_to: int | None = None

    def __init__(
        self,
        file: FileStorage,
        *,
        exclusive: bool,
        hooks: Hooks | None = None,
    ) -> None:
        """`file` is closed with the disk: the lock on the image, if any, is on its descriptor."""
        self._file = file
        header = read_header(file)
        self.block_bytes = header.cluster * header.table_entries
        self.hooks = hooks or Hooks()
        self.last_metadata: float | None = None
        self._server = QemuNbd(file, locked=exclusive)
        self._disk = self._server.storage
        self.size = self._disk.size()
        self._known: set[int] = set()
        """Blocks that are there for certain."""
        self._allocating = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        self._inside(offset, length)
        return self._disk.pread(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._inside(offset, len(data))
        self._noticed(offset, len(data), lambda: self._disk.pwrite(offset, data))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self._noticed(offset, length, lambda: self._disk.zero(offset, length))

    def trim(self, offset: int, length: int) -> None:
        """Frees whole clusters in the file; they read as zeros then."""
        self._inside(offset, length)
        self.hooks.may_write_metadata()
        self._disk.trim(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """QEMU is not told."""
        self._inside(offset, length)

    def _noticed(self, offset: int, length: int, write: Callable[[], None]) -> None:
        """Writes, and tells of the blocks that this makes."""
        if not length:
            return
        blocks = range(offset // self.block_bytes, (offset + length - 1) // self.block_bytes + 1)
        if self._known.issuperset(blocks):
            write()
            return
        with self._allocating:
            new = [block for block in blocks if block not in self._known and self._empty(block)]
            if new:
                self.hooks.may_write_metadata()
            write()
            self._known.update(blocks)
        for block in new:
            self.hooks.allocated(block, 0)

    def _empty(self, block: int) -> bool:
        start = block * self.block_bytes
        length = min(self.block_bytes, self.size - start)
        return not any(data for _, data in self._disk.extents(start, length, 1 << 16))

    def flush(self) -> None:
        """QEMU writes its tables now, so the lease must still be ours."""
        self.hooks.may_write_metadata()
        self._disk.flush()
        self.last_metadata = monotonic()

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        self._inside(offset, length)
        return self._disk.extents(offset, length, most)

    def finish(self) -> bool:
        """All is durable and QEMU has closed the image; there is no footer."""
        self.flush()
        self._server.stop()
        self.last_metadata = monotonic()
        return False

    def abandon(self) -> None:
        """Nothing more is written."""
        self._server.kill()
        self._file.close()

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{self._disk.name}: {length} bytes at {offset} pass the disk's end")
