"""What a guest has no use for any more, and what it will want soon: advice to an open image."""

from collections.abc import Iterator

from vhdtool.image.disk.allocator import Allocator
from vhdtool.image.disk.block_map import window
from vhdtool.vhd.units import SECTOR, UNUSED, pad


class Freeing(Allocator):
    """Offsets and lengths are bytes."""

    def trim(self, offset: int, length: int) -> None:
        """Frees what a range takes in this file; what was written there reads as zeros then.

        It stays allocated, and a parent that shows through goes on doing so. Advice: where freeing
        is not cheap nothing happens.
        """
        first, end = pad(offset), (offset + length) // SECTOR * SECTOR
        if end <= first:
            return
        for block, within, count in self._split(first, end - first):
            for at, size in self._own(block, within, count):
                self._dirty = True
                self.storage.discard(at, size)

    def prefetch(self, offset: int, length: int) -> None:
        """The range is going to be read. Advice; what a parent shows is not fetched."""
        for block, within, count in self._split(offset, length):
            if self.bat[block] != UNUSED:
                self.storage.will_need(self.layout.data_offset(self.bat[block]) + within, count)

    def _own(self, block: int, within: int, count: int) -> Iterator[tuple[int, int]]:
        """(offset in the file, bytes) of whatever is present of whole sectors of a block."""
        entry = self.bat[block]
        if entry == UNUSED:
            return
        bitmap = self._bitmap(block, entry)
        first, sectors = within // SECTOR, count // SECTOR
        runs = [(True, first, sectors)] if bitmap is None else window(bitmap, first, sectors)
        for present, at, run in runs:
            if present and run:
                yield self.layout.data_offset(entry) + at * SECTOR, run * SECTOR
