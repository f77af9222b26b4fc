"""Moving blocks within an image; at every moment the BAT points to complete blocks."""

from array import array
from dataclasses import replace

from vhdtool.image.check.regions import first_free_sector
from vhdtool.image.journal.transaction import apply_journalled
from vhdtool.image.journal.undo import Change, apply
from vhdtool.image.metadata.bounds import end_of_data, footer_offset
from vhdtool.image.metadata.read import Metadata
from vhdtool.storage import Storage
from vhdtool.vhd.bat import ENTRIES_PER_SECTOR, pack_bat_sector
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED, pad

_CHUNK = 1 << 20
_BLOCKS_PER_JOURNAL = 512
"""Blocks that are moved with one journal when a disk shrinks."""


class BlockMover:
    """Moves blocks of a closed image.

    The data is copied to free space first, behind an empty bitmap. Then bitmaps and BAT entries
    are written with a journal, so that no crash leaves an orphan block.
    """

    def __init__(self, storage: Storage, meta: Metadata, header: Header) -> None:
        self.storage = storage
        self.meta = meta
        self.header = header
        self.layout = BlockLayout(header.block_bytes)
        self.bat: array[int] = array("I", meta.bat)
        """The BAT after the change."""
        self._moves: list[tuple[int, int]] = []
        self._on_device = storage.is_block_device
        end = end_of_data(meta.footer, header, meta.batmap, meta.bat)
        free = first_free_sector(storage, meta.ends, self.layout, meta.bat, end)
        self.orphans_end = free if free > end else 0
        """The sector behind the orphan blocks that follow the data; 0 where there are none."""

    @property
    def end(self) -> int:
        """The sector behind all data and orphan blocks."""
        end = end_of_data(self.meta.footer, self.header, self.meta.batmap, self.bat)
        return max(end, self.orphans_end)

    def clear_front(self, sector: int) -> None:
        """Plan to move every block that starts below `sector` to the end of the file."""
        first = sector
        blocks = [
            block for _, block in sorted((e, b) for b, e in enumerate(self.bat) if e < sector)
        ]
        if blocks and not self._on_device:
            if self.meta.ends.footer_offset != self.end * SECTOR:
                # Remove leaked space at the end, which would become a gap between blocks.
                self.meta = self._finish()
            # Behind the footer, so that undoing the journal only has to cut the file.
            first = max(first, pad(self.meta.ends.file_size) // SECTOR)
        for block in blocks:
            self._move(block, self.layout.next_entry(max(self.end, first)))

    def free(self, blocks: list[int], journal: str) -> Metadata:
        """Free blocks, fill the holes with the last blocks of the file, and cut the file.

        Returns the new metadata.
        """
        holes = [self.bat[block] for block in blocks]
        for block in blocks:
            self.bat[block] = UNUSED
        apply(
            self.storage, self._bat_changes(blocks) + [self._clear_bitmap(hole) for hole in holes]
        )
        last = sorted(((e, b) for b, e in enumerate(self.bat) if e != UNUSED), reverse=True)
        moves = [(b, hole) for hole, (e, b) in zip(sorted(holes), last, strict=False) if e > hole]
        for first in range(0, len(moves), _BLOCKS_PER_JOURNAL):
            self._moves.clear()
            for block, hole in moves[first : first + _BLOCKS_PER_JOURNAL]:
                self._move(block, hole)
            self.commit(journal, self._bat_changes([block for block, _ in self._moves]))
        return self._finish()

    def commit(self, journal: str, tables: list[Change]) -> None:
        """Move the planned blocks. `tables` write the BAT, and what changes together with it."""
        changes = []
        for block, entry in self._moves:
            old = self.meta.bat[block]
            raw = self.storage.pread(old * SECTOR, self.layout.bitmap_sectors * SECTOR)
            changes.append(Change("write the bitmap of a block that moves", entry * SECTOR, raw))
            # The old copy must not look like an orphan block.
            clear = self._clear_bitmap(old)
            if not any(_covers(one, clear) for one in tables):
                changes.append(clear)
        if self._on_device:
            # Cleared before the journal is written: it saves the old data of the targets.
            apply(self.storage, self._clear_targets())
        apply_journalled(self.storage, journal, changes + tables, self._copy)

    def _move(self, block: int, entry: int) -> None:
        footer_offset(self.storage, self.layout.end_sector(entry) * SECTOR)
        self._moves.append((block, entry))
        self.bat[block] = entry

    def _clear_bitmap(self, entry: int) -> Change:
        empty = bytes(self.layout.bitmap_sectors * SECTOR)
        return Change("clear the bitmap of a block without an entry", entry * SECTOR, empty)

    def _clear_targets(self) -> list[Change]:
        return [self._clear_bitmap(entry) for _, entry in self._moves]

    def _copy(self) -> None:
        apply(self.storage, self._clear_targets())
        for block, entry in self._moves:
            old = self.meta.bat[block]
            self._copy_data(self.layout.data_offset(old), self.layout.data_offset(entry))
        self.storage.flush()

    def _copy_data(self, source: int, target: int) -> None:
        total = self.layout.block_bytes
        for skip in range(0, total, _CHUNK):
            data = self.storage.pread(source + skip, min(_CHUNK, total - skip))
            if any(data):
                self.storage.pwrite(target + skip, data)
            else:
                self.storage.zero(target + skip, len(data))

    def _bat_changes(self, blocks: list[int]) -> list[Change]:
        """Writes of all BAT sectors that have entries of these blocks."""
        changes = []
        for index in sorted({block // ENTRIES_PER_SECTOR for block in blocks}):
            _, raw = pack_bat_sector(self.bat, index * ENTRIES_PER_SECTOR)
            used = min(len(self.bat) - index * ENTRIES_PER_SECTOR, ENTRIES_PER_SECTOR)
            offset = self.header.bat_offset + index * SECTOR
            old = self.storage.pread(offset, SECTOR)
            changes.append(Change("write the BAT", offset, raw[: 4 * used] + old[4 * used :]))
        return changes

    def _finish(self) -> Metadata:
        """Write the footer behind the data, and cut the file there; returns the new metadata."""
        end = footer_offset(self.storage, self.end * SECTOR)
        self.storage.pwrite(end, self.meta.footer.pack())
        self.storage.flush()
        self.storage.truncate(end + SECTOR)
        self.storage.flush()
        ends = replace(
            self.meta.ends, footer=self.meta.footer, footer_offset=end, file_size=end + SECTOR
        )
        return Metadata(
            self.meta.footer, ends, self.header, self.bat, self.meta.batmap, self.meta.layout
        )


def _covers(one: Change, other: Change) -> bool:
    """Whether `one` overwrites the whole range of `other`."""
    if one.data is None or other.data is None:
        return False
    end = other.offset + len(other.data)
    return one.offset <= other.offset and end <= one.offset + len(one.data)
