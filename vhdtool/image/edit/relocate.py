"""Moving blocks within an image. At every moment the BAT points to whole blocks."""

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
_TOGETHER = 512
"""Blocks that one journal moves when a disk shrinks."""


class BlockMover:
    """Moves blocks of an image that was closed.

    The data is copied to free space first, under an empty bitmap. Then bitmaps and BAT entries
    change. A journal guards both: at no moment does the file show a block whose entry was lost.
    """

    def __init__(self, storage: Storage, meta: Metadata, header: Header) -> None:
        self.storage = storage
        self.meta = meta
        self.header = header
        self.layout = BlockLayout(header.block_bytes)
        self.bat: array[int] = array("I", meta.bat)
        """The table as it will be."""
        self._moves: list[tuple[int, int]] = []
        self._on_device = storage.is_block_device
        end = end_of_data(meta.footer, header, meta.batmap, meta.bat)
        self.kept = first_free_sector(storage, meta.ends, self.layout, meta.bat, end)
        """Orphan blocks of a closed image end before this sector, where there are any."""
        if self.kept == end:
            self.kept = 0

    @property
    def end(self) -> int:
        """The first sector behind all data, and behind blocks that no entry names."""
        end = end_of_data(self.meta.footer, self.header, self.meta.batmap, self.bat)
        return max(end, self.kept)

    def clear_front(self, sector: int) -> None:
        """Gives every block that starts below `sector` a place at the end of the file."""
        first = sector
        blocks = [
            block for _, block in sorted((e, b) for b, e in enumerate(self.bat) if e < sector)
        ]
        if blocks and not self._on_device:
            if self.meta.ends.end_offset != self.end * SECTOR:
                # What no block needs there must not stay between blocks.
                self.meta = self._finish()
            # Behind the footer: then a journal brings back the whole file by cutting it.
            first = max(first, pad(self.meta.ends.file_size) // SECTOR)
        for block in blocks:
            self._move(block, self.layout.place(max(self.end, first)))

    def free(self, blocks: list[int], journal: str) -> Metadata:
        """Frees blocks, and fills each hole with the block that is last in the file.

        Cuts the file behind the last one, and returns the new metadata.
        """
        holes = [self.bat[block] for block in blocks]
        for block in blocks:
            self.bat[block] = UNUSED
        apply(self.storage, self._bat_changes(blocks) + [self._emptied(hole) for hole in holes])
        places = sorted(((e, b) for b, e in enumerate(self.bat) if e != UNUSED), reverse=True)
        moves = [(b, hole) for hole, (e, b) in zip(sorted(holes), places, strict=False) if e > hole]
        for first in range(0, len(moves), _TOGETHER):
            self._moves.clear()
            for block, hole in moves[first : first + _TOGETHER]:
                self._move(block, hole)
            self.commit(journal, self._bat_changes([block for block, _ in self._moves]))
        return self._finish()

    def commit(self, journal: str, tables: list[Change]) -> None:
        """Moves the blocks; `tables` write the BAT, and what else has to change with it."""
        changes = []
        for block, entry in self._moves:
            old = self.meta.bat[block]
            raw = self.storage.pread(old * SECTOR, self.layout.bitmap_sectors * SECTOR)
            changes.append(Change("write the bitmap of a block that moves", entry * SECTOR, raw))
            # What is left there must not look like a block whose entry was lost.
            left = self._emptied(old)
            if not any(_covers(one, left) for one in tables):
                changes.append(left)
        if self._on_device:
            # The journal must find there what it kept.
            apply(self.storage, self._targets())
        apply_journalled(self.storage, journal, changes + tables, self._copy)

    def _move(self, block: int, entry: int) -> None:
        footer_offset(self.storage, self.layout.end_sector(entry) * SECTOR)
        self._moves.append((block, entry))
        self.bat[block] = entry

    def _emptied(self, entry: int) -> Change:
        empty = bytes(self.layout.bitmap_sectors * SECTOR)
        return Change("clear the bitmap of a place without a block", entry * SECTOR, empty)

    def _targets(self) -> list[Change]:
        return [self._emptied(entry) for _, entry in self._moves]

    def _copy(self) -> None:
        apply(self.storage, self._targets())
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
        """Writes the BAT's sectors that have the entries of these blocks, whole."""
        changes = []
        for index in sorted({block // ENTRIES_PER_SECTOR for block in blocks}):
            _, raw = pack_bat_sector(self.bat, index * ENTRIES_PER_SECTOR)
            used = min(len(self.bat) - index * ENTRIES_PER_SECTOR, ENTRIES_PER_SECTOR)
            offset = self.header.bat_offset + index * SECTOR
            old = self.storage.pread(offset, SECTOR)
            changes.append(Change("write the BAT", offset, raw[: 4 * used] + old[4 * used :]))
        return changes

    def _finish(self) -> Metadata:
        """Writes the footer behind the data and cuts what is left; returns the new metadata."""
        end = footer_offset(self.storage, self.end * SECTOR)
        self.storage.pwrite(end, self.meta.footer.pack())
        self.storage.flush()
        self.storage.truncate(end + SECTOR)
        self.storage.flush()
        ends = replace(self.meta.ends, end=self.meta.footer, end_offset=end, file_size=end + SECTOR)
        return Metadata(
            self.meta.footer, ends, self.header, self.bat, self.meta.batmap, self.meta.layout
        )


def _covers(one: Change, other: Change) -> bool:
    """Whether `one` writes all that `other` does."""
    if one.data is None or other.data is None:
        return False
    end = other.offset + len(other.data)
    return one.offset <= other.offset and end <= one.offset + len(one.data)
