"""Moving blocks within an image. At every moment the BAT points to a whole block."""

from array import array
from dataclasses import replace

from vhdtool.image.metadata import Metadata
from vhdtool.image.places import end_of_data, end_of_kept, footer_place
from vhdtool.storage import Storage
from vhdtool.vhd.bat import ENTRIES_PER_SECTOR, pack_bat_sector
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

_CHUNK = 1 << 20


class Mover:
    """Moves blocks of an image that was closed; call `finish` to close it again.

    A block is copied to free space and made durable before its BAT entry changes; a BAT sector
    is written whole. A crash leaves an image without a footer at its end and with leaked space,
    which `vhdtool repair` mends.
    """

    def __init__(self, storage: Storage, meta: Metadata, header: Header) -> None:
        self.storage = storage
        self.meta = meta
        self.header = header
        self.layout = BlockLayout(header.block_bytes)
        self.bat: array[int] = array("I", meta.bat)
        self.moved = False
        end = end_of_data(meta.footer, header, meta.batmap, meta.bat)
        self.kept = end_of_kept(storage, meta.ends, self.layout, meta.bat, end)
        """Orphan blocks of a closed image end before this sector, where there are any."""
        if self.kept == end:
            self.kept = 0

    @property
    def end(self) -> int:
        """The first sector behind all data, and behind blocks that no entry names."""
        end = end_of_data(self.meta.footer, self.header, self.meta.batmap, self.bat)
        return max(end, self.kept)

    def move(self, block: int, entry: int) -> None:
        """Copies a block to BAT entry `entry`, which must be free, and makes it its place."""
        footer_place(self.storage, self.layout.end_sector(entry) * SECTOR)
        source = self.bat[block] * SECTOR
        target = entry * SECTOR
        total = self.layout.total_sectors * SECTOR
        for skip in range(0, total, _CHUNK):
            data = self.storage.pread(source + skip, min(_CHUNK, total - skip))
            if any(data):
                self.storage.pwrite(target + skip, data)
            else:
                self.storage.zero(target + skip, len(data))
        self.storage.flush()
        self.set(block, entry)
        self.storage.flush()
        # What is left there must not look like a block whose entry was lost.
        self.storage.zero(source, self.layout.bitmap_sectors * SECTOR)

    def set(self, block: int, entry: int) -> None:
        """Writes one BAT entry. The caller flushes."""
        self.bat[block] = entry
        index, raw = pack_bat_sector(self.bat, block)
        used = min(len(self.bat) - index * ENTRIES_PER_SECTOR, ENTRIES_PER_SECTOR)
        offset = self.header.bat_offset + index * SECTOR
        old = self.storage.pread(offset, SECTOR)
        self.storage.pwrite(offset, raw[: 4 * used] + old[4 * used :])
        self.moved = True

    def clear_front(self, sector: int) -> None:
        """Moves every block that starts below `sector` to the end of the file."""
        for _, block in sorted((e, b) for b, e in enumerate(self.bat) if e < sector):
            self.move(block, self.layout.place(max(self.end, sector)))

    def free(self, blocks: list[int]) -> None:
        """Frees blocks, and fills each hole with the block that is last in the file."""
        holes = []
        for block in blocks:
            holes.append(self.bat[block])
            self.set(block, UNUSED)
        self.storage.flush()
        for hole in sorted(holes):
            places = [(entry, block) for block, entry in enumerate(self.bat) if entry != UNUSED]
            last, block = max(places, default=(0, 0))
            if last > hole:
                self.move(block, hole)

    def finish(self) -> Metadata:
        """Writes the footer behind the data and cuts what is left; returns the new metadata."""
        if not self.moved:
            return self.meta
        end = footer_place(self.storage, self.end * SECTOR)
        self.storage.pwrite(end, self.meta.footer.pack())
        self.storage.flush()
        self.storage.truncate(end + SECTOR)
        self.storage.flush()
        ends = replace(self.meta.ends, end=self.meta.footer, end_offset=end, file_size=end + SECTOR)
        return Metadata(
            self.meta.footer, ends, self.header, self.bat, self.meta.batmap, self.meta.layout
        )
