"""Reads of an image with blocks: present sectors from the file, the others from the parent."""

from collections.abc import Iterator

from vhdtool.errors import CorruptImage
from vhdtool.image.disk.base import Parent, require_inside
from vhdtool.image.disk.block_map import BlockMap, runs_within
from vhdtool.ranges import DataRange
from vhdtool.storage import Storage
from vhdtool.storage.sparse import Contents
from vhdtool.vhd.units import SECTOR, UNUSED


class BlockReader:
    """Offsets and lengths are bytes.

    `pad_short`: a block that the file's end cuts off reads as zeros there instead of raising.
    """

    def __init__(
        self, storage: Storage, blocks: BlockMap, parent: Parent | None, size: int, pad_short: bool
    ) -> None:
        self._storage = storage
        self._blocks = blocks
        self._parent = parent
        self._size = size
        self._pad_short = pad_short

    def split(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(block, byte offset within it, bytes) for each block that a request touches.

        Raises ValueError past the disk's end.
        """
        require_inside(self._storage.name, self._size, offset, length)
        block_bytes = self._blocks.block_bytes
        while length:
            block, within = divmod(offset, block_bytes)
            count = min(length, block_bytes - within)
            yield block, within, count
            offset += count
            length -= count

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes. Raises CorruptImage where the file has lost data."""
        parts = [
            self.read_block(block, within, count)
            for block, within, count in self.split(offset, length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_block(self, block: int, within: int, count: int) -> bytes:
        """Return `count` bytes of one block."""
        entry = self._blocks.bat[block]
        if entry == UNUSED:
            return self._below(block, within, count)
        start = self._blocks.layout.data_offset(entry)
        bitmap = self._blocks.bitmap(block, entry)
        if bitmap is None:
            return self.present(start + within, count)
        out = []
        for present, begin, size in _byte_runs(bitmap, within, count):
            if present:
                out.append(self.present(start + begin, size))
            else:
                out.append(self._below(block, begin, size))
        return out[0] if len(out) == 1 else b"".join(out)

    def present(self, offset: int, count: int) -> bytes:
        """Return bytes of the file that are present by the metadata. Raises CorruptImage."""
        data = self._storage.pread(offset, count)
        if len(data) == count:
            return data
        if self._pad_short:
            return data.ljust(count, b"\0")
        raise CorruptImage(
            f"{self._storage.name}: data at byte {offset} is behind the end of the file: its tail "
            "was cut off"
        )

    def _below(self, block: int, within: int, count: int) -> bytes:
        if self._parent is None:
            return bytes(count)
        start = block * self._blocks.block_bytes + within
        # A parent may be smaller than its child.
        return self._parent.read(start, count).ljust(count, b"\0")

    def extents(self, offset: int, length: int) -> Iterator[DataRange]:
        """The ranges of a request that may hold data, and those that read as zeros.

        A range reads as zeros where no layer has it, or where a layer's file has a hole.
        """
        contents = Contents(self._storage)
        absent = position = offset
        for block, within, count in self.split(offset, length):
            for size, file_offset in self._file_ranges(block, within, count):
                if file_offset is not None:
                    yield from self._below_ranges(absent, position)
                    yield from contents.data_ranges(file_offset, size)
                    absent = position + size
                position += size
        yield from self._below_ranges(absent, position)

    def _below_ranges(self, start: int, end: int) -> Iterator[DataRange]:
        if self._parent is not None:
            yield from self._parent.data_ranges(start, end)
        elif start < end:
            yield end - start, False

    def _file_ranges(self, block: int, within: int, count: int) -> Iterator[tuple[int, int | None]]:
        """(bytes, file offset, or None where absent) of the runs of one block."""
        entry = self._blocks.bat[block]
        if entry == UNUSED:
            yield count, None
            return
        start = self._blocks.layout.data_offset(entry)
        bitmap = self._blocks.bitmap(block, entry)
        if bitmap is None:
            yield count, start + within
            return
        for present, begin, size in _byte_runs(bitmap, within, count):
            yield size, start + begin if present else None

    def present_ranges(self, block: int, within: int, count: int) -> Iterator[tuple[int, int]]:
        """(file offset, bytes) of the present sectors of one block."""
        for size, file_offset in self._file_ranges(block, within, count):
            if file_offset is not None and size:
                yield file_offset, size


def _byte_runs(bitmap: bytes, within: int, count: int) -> Iterator[tuple[bool, int, int]]:
    """(present, byte offset in the block, bytes) of the runs in [within, within + count)."""
    first, last = within // SECTOR, (within + count - 1) // SECTOR
    for present, at, sectors in runs_within(bitmap, first, last - first + 1):
        begin = max(within, at * SECTOR)
        yield present, begin, min(within + count, (at + sectors) * SECTOR) - begin
