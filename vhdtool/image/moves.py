"""Moving blocks within an image. At every moment the BAT points to whole blocks."""

from array import array
from dataclasses import replace

from vhdtool.image.journal import guarded
from vhdtool.image.metadata import Metadata
from vhdtool.image.places import end_of_data, end_of_kept, footer_place
from vhdtool.image.undo import Change, apply
from vhdtool.storage import Storage
from vhdtool.vhd.bat import ENTRIES_PER_SECTOR, pack_bat_sector
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

_CHUNK = 1 << 20


class Mover:
    """Moves blocks of an image that was closed.

    First the data is copied to free space, under an empty bitmap: until then a crash leaves leaked
    space there, and never what looks like a block whose BAT entry was lost. Bitmaps and BAT
    entries change afterwards, together, by a journal.
    """

    def __init__(self, storage: Storage, meta: Metadata, header: Header) -> None:
        self.storage = storage
        self.meta = meta
        self.header = header
        self.layout = BlockLayout(header.block_bytes)
        self.bat: array[int] = array("I", meta.bat)
        """The table as it will be."""
        end = end_of_data(meta.footer, header, meta.batmap, meta.bat)
        self.kept = end_of_kept(storage, meta.ends, self.layout, meta.bat, end)
        """Orphan blocks of a closed image end before this sector, where there are any."""
        if self.kept == end:
            self.kept = 0
        ends = meta.ends
        self._tail = storage.pread(ends.end_offset, ends.file_size - ends.end_offset)

    @property
    def end(self) -> int:
        """The first sector behind all data, and behind blocks that no entry names."""
        end = end_of_data(self.meta.footer, self.header, self.meta.batmap, self.bat)
        return max(end, self.kept)

    def clear_front(self, sector: int) -> list[Change]:
        """Copies the data of every block that starts below `sector` to the end of the file.

        Returns what makes the copies whole; `bat` must be written together with that.
        """
        moves = []
        for _, block in sorted((e, b) for b, e in enumerate(self.bat) if e < sector):
            moves.append((block, self.layout.place(max(self.end, sector))))
            self.bat[block] = moves[-1][1]
        return self._copied(moves)

    def put_back(self) -> None:
        """Ends the file where it ended, after `clear_front` failed or its changes were undone."""
        self.storage.pwrite(self.meta.ends.end_offset, self._tail)
        self.storage.truncate(self.meta.ends.file_size)
        self.storage.flush()

    def free(self, blocks: list[int], journal: str) -> Metadata:
        """Frees blocks, and fills each hole with the block that is last in the file.

        Cuts the file behind the last one, and returns the new metadata.
        """
        holes = [self.bat[block] for block in blocks]
        for block in blocks:
            self.bat[block] = UNUSED
        apply(self.storage, self._bat_changes(blocks))
        moves = []
        for hole in sorted(holes):
            places = [(entry, block) for block, entry in enumerate(self.bat) if entry != UNUSED]
            last, block = max(places, default=(0, 0))
            if last > hole:
                moves.append((block, hole))
                self.bat[block] = hole
        changes = self._copied(moves) + self._bat_changes([block for block, _ in moves])
        if changes:
            guarded(self.storage, journal, changes)
        return self._finish()

    def _copied(self, moves: list[tuple[int, int]]) -> list[Change]:
        """Copies data of blocks to BAT entries, which are free; returns what completes them."""
        layout, bitmaps = self.layout, []
        empty = bytes(layout.bitmap_sectors * SECTOR)
        for _, entry in moves:
            footer_place(self.storage, layout.end_sector(entry) * SECTOR)
            self.storage.zero(entry * SECTOR, len(empty))
        self.storage.flush()
        for block, entry in moves:
            old = self.meta.bat[block]
            bitmap = self.storage.pread(old * SECTOR, len(empty))
            bitmaps.append(Change("write the bitmap of a block that moves", entry * SECTOR, bitmap))
            self._copy_data(layout.data_offset(old), layout.data_offset(entry))
        self.storage.flush()
        # What is left there must not look like a block whose entry was lost.
        return bitmaps + [
            Change("clear the bitmap that it had", self.meta.bat[block] * SECTOR, empty)
            for block, _ in moves
        ]

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
        end = footer_place(self.storage, self.end * SECTOR)
        self.storage.pwrite(end, self.meta.footer.pack())
        self.storage.flush()
        self.storage.truncate(end + SECTOR)
        self.storage.flush()
        ends = replace(self.meta.ends, end=self.meta.footer, end_offset=end, file_size=end + SECTOR)
        return Metadata(
            self.meta.footer, ends, self.header, self.bat, self.meta.batmap, self.meta.layout
        )
