"""Room for new blocks: zeros behind the end of data, durable before a BAT entry points there.

Where zeros are what an absent sector reads as, their bitmaps say that every sector is present: then
a new block needs no write but its BAT entry, and none of its later writes touches a bitmap.
"""

from vhdtool.image.disk.hooks import Hooks
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR

FIRST_AHEAD = 4
MOST_AHEAD = 64
"""Blocks that are cleared at once, so that few allocations have to wait for a flush."""


class Room:
    """Sectors behind the end of data that are zeros for good.

    Without that a power cut could leave a BAT entry that points behind the end of the file, or
    to an old footer or block that would be taken for bitmap and data. A file is made longer than
    it needs to be (as a hole); closing the image cuts it.

    `bitmap`: what stands before the data of each block, zeros or not.
    """

    def __init__(
        self,
        storage: Storage,
        layout: BlockLayout,
        device: bool,
        bitmap: bytes,
        hooks: Hooks,
    ) -> None:
        self._storage = storage
        self._layout = layout
        self._device = device
        self._bitmap = bitmap if any(bitmap) else None
        self._hooks = hooks
        self._cleared = 0
        self._ahead = FIRST_AHEAD

    def make(self, end: int, entry: int, wanted: int) -> bool:
        """Room for the block at `entry`, the first behind sector `end`; True when it was made now.

        `wanted`: how many blocks there may ever be. Raises StorageError.
        """
        stop = self._layout.end_sector(entry)
        if stop <= self._cleared:
            return False
        self.forget()
        more = min(self._ahead, wanted) - 1
        # On a device the bitmaps are all there is to clear, and the footer is not in the way.
        if self._device or not self._layout.fits(stop + more * self._layout.stride):
            more = 0
        try:
            self._clear(end, entry, stop + more * self._layout.stride)
        except StorageError:
            if not more:
                raise
            more = 0
            self._clear(end, entry, stop)
        self._storage.flush()
        self._cleared = stop + more * self._layout.stride
        self._ahead = min(2 * self._ahead, MOST_AHEAD)
        return True

    def _clear(self, end: int, entry: int, stop: int) -> None:
        if self._device:
            stop = entry + self._layout.bitmap_sectors
        self._hooks.may_write_metadata()
        self._storage.zero(end * SECTOR, (stop - end) * SECTOR)
        self._hooks.reached("allocate-zeroed")
        if self._bitmap is not None:
            self._hooks.may_write_metadata()
            for sector in range(entry, stop, self._layout.stride):
                self._storage.pwrite(sector * SECTOR, self._bitmap)

    def forget(self) -> None:
        """Something was written there, or the file was cut: nothing is clear any more."""
        self._cleared = 0
