"""Preallocation: zeros behind the last block, made durable before a BAT entry points there.

Where absent sectors read as zeros, the bitmaps in front of them can say that every sector is
present: then a new block needs no write but its BAT entry, and no later write touches a bitmap.
"""

from vhdtool.image.disk.metadata_writer import MetadataWriter
from vhdtool.storage import StorageError
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR

FIRST_AHEAD = 4
MOST_AHEAD = 64
"""Blocks that are preallocated at once, so that few allocations have to wait for a flush."""


class Preallocation:
    """Sectors behind the last block that are durably zero.

    Without them a power cut could leave a BAT entry that points behind the end of the file, or
    to an old footer or block that would be read as bitmap and data. A file is made longer than
    it needs to be (as a hole); closing the image cuts it.

    `bitmap` is written in front of each block's data unless it is all zeros.
    """

    def __init__(self, writer: MetadataWriter, layout: BlockLayout, bitmap: bytes) -> None:
        self._writer = writer
        self._storage = writer.storage
        self._layout = layout
        self._bitmap = bitmap if any(bitmap) else None
        self._end = 0
        """The sector behind what is preallocated."""
        self._ahead = FIRST_AHEAD

    def extend(self, end: int, entry: int, wanted: int) -> bool:
        """Preallocate the block at `entry`, the first behind sector `end`; True: it wrote.

        `wanted`: how many more blocks the disk can ever need. Raises StorageError.
        """
        stop = self._layout.end_sector(entry)
        if stop <= self._end:
            return False
        self.forget()
        more = min(self._ahead, wanted) - 1
        # On a device only the bitmaps are cleared, and the footer does not move.
        if self._storage.is_block_device or not self._layout.fits(
            stop + more * self._layout.stride
        ):
            more = 0
        try:
            self._clear(end, entry, stop + more * self._layout.stride)
        except StorageError:
            if not more:
                raise
            more = 0
            self._clear(end, entry, stop)
        self._storage.flush()
        self._end = stop + more * self._layout.stride
        self._ahead = min(2 * self._ahead, MOST_AHEAD)
        return True

    def _clear(self, end: int, entry: int, stop: int) -> None:
        if self._storage.is_block_device:
            stop = entry + self._layout.bitmap_sectors
        hooks = self._writer.hooks
        hooks.may_write_metadata()
        self._storage.zero(end * SECTOR, (stop - end) * SECTOR)
        hooks.reached("space-zeroed")
        if self._bitmap is not None:
            hooks.may_write_metadata()
            for sector in range(entry, stop, self._layout.stride):
                self._storage.pwrite(sector * SECTOR, self._bitmap)

    def forget(self) -> None:
        """Forget what is preallocated: something was written there, or the file was cut."""
        self._end = 0
