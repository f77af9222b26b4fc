"""A lost header, rebuilt from what footer, BAT, batmap and blocks prove.

The footer has the size of the disk. A candidate is a block size together with a position at which
every entry of a BAT for that size is possible. Each candidate becomes a header in a view of the
image, and the check of that view decides: it must find no damage, and nothing may be left over.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from vhdtool.errors import CorruptImage
from vhdtool.image.check.image import check
from vhdtool.image.journal.overlay import OverlayStorage
from vhdtool.image.metadata.ends import HEADER_OFFSET, Ends, read_ends
from vhdtool.image.metadata.findings import CheckReport
from vhdtool.image.metadata.orphans import Orphan, find_orphans
from vhdtool.image.metadata.placement import Placement
from vhdtool.image.metadata.read import read_batmap_header
from vhdtool.storage import Storage
from vhdtool.vhd.bat import empty_bat, unpack_bat
from vhdtool.vhd.batmap import COOKIE as BATMAP_COOKIE
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, FIXED, Footer
from vhdtool.vhd.header import COOKIE, SIZE, VERSION, Header
from vhdtool.vhd.units import (
    DEFAULT_BLOCK,
    MAX_ENTRIES,
    MIB,
    NO_OFFSET,
    SECTOR,
    SMALLEST_BLOCK,
    UNUSED,
    size_text,
)

BLOCK_SIZES = (DEFAULT_BLOCK, SMALLEST_BLOCK, MIB, *(MIB << power for power in range(2, 7)))
"""Bytes of a block in the images of every known creator, and some more."""
_SEARCHED = MIB
"""Bytes behind a BAT in which a batmap is searched: a BAT may be larger than its disk needs."""
_MOST_CANDIDATES = 8
_LEFT_OVER = frozenset({"orphan-block", "leaked-block", "leaked-tail"})
"""Codes of blocks and space that the BAT should name: then the table may be another one."""


@dataclass(frozen=True, slots=True)
class RebuiltHeader:
    """A header for byte `offset`, what proves it, and the check of the image with it."""

    header: Header
    offset: int
    evidence: list[str]
    report: CheckReport
    proved: bool = False
    """The old checksum fits, and proves every field."""
    needs_parent: bool = False
    """The image is a child, and nothing in it says of which parent."""
    exact: bool = True
    """The table has as many entries as the disk needs, and no more."""

    @property
    def sound(self) -> bool:
        """Whether the image has no damage with this header, and nothing is left over."""
        codes = {one.code for one in self.report.findings}
        # Nothing names the locators of a child any more; in one without a block they are its tail.
        left_over = _LEFT_OVER - {"leaked-tail"} if self.needs_parent else _LEFT_OVER
        return self.report.exit_code != 2 and (self.proved or not codes & left_over)

    def __str__(self) -> str:
        header = self.header
        return (
            f"BAT at byte {header.bat_offset} with {header.max_entries} entries, blocks of "
            f"{size_text(header.block_bytes)}"
        )

    def view(self, storage: Storage) -> Storage:
        """The image with this header."""
        return OverlayStorage(storage, [(self.offset, self.header.pack())])


def rebuild_header(storage: Storage, parent_fields: Header | None = None) -> RebuiltHeader:
    """Find the header that the rest of a dynamic image proves; writes nothing.

    `parent_fields` has the parent of a child whose own fields are lost. Raises NotAVhd, or
    CorruptImage where no header is proved, or more than one is possible.
    """
    ends = read_ends(storage)
    footer = ends.best or ends.agreed
    if footer is None:
        raise _lost(storage, "no footer is valid, so the size of the disk is unknown")
    if footer.disk_type == FIXED:
        raise _lost(storage, "a fixed image has no header")
    offset = footer.data_offset
    if offset % SECTOR or not SECTOR <= offset <= ends.file_size - SIZE:
        offset = HEADER_OFFSET
    old = Header.unpack(storage.pread(offset, SIZE).ljust(SIZE, b"\0"))
    candidates = _candidates(storage, footer, old, offset, ends.file_size)
    return _the_best(
        storage,
        footer,
        ends,
        [
            _tried(storage, footer, old, offset, one, parent_fields)
            for one in islice(candidates, _MOST_CANDIDATES)
        ],
    )


def _tried(
    storage: Storage,
    footer: Footer,
    old: Header,
    offset: int,
    header: Header,
    parent_fields: Header | None,
) -> RebuiltHeader:
    """Check the image with a candidate."""
    is_child = footer.disk_type == DIFFERENCING
    exact = header.max_entries == -(-footer.current_size // header.block_bytes)
    header, proved = _with_parent_fields(header, old, parent_fields if is_child else None)
    view = OverlayStorage(storage, [(offset, header.pack())])
    return RebuiltHeader(
        header, offset, _evidence(header, proved, exact), check(view), proved,
        is_child and not proved, exact,
    )  # fmt: skip


def _lost(storage: Storage, reason: str) -> CorruptImage:
    return CorruptImage(f"{storage.name}: its header cannot be rebuilt: {reason}")


def _with_parent_fields(
    header: Header, old: Header, parent_fields: Header | None
) -> tuple[Header, bool]:
    """The candidate with the fields that it does not say itself, and whether they are proved."""
    repaired = replace(
        old,
        cookie=COOKIE,
        next_offset=NO_OFFSET,
        version=VERSION,
        max_entries=header.max_entries,
        block_bytes=header.block_bytes,
        bat_offset=header.bat_offset,
    )
    if repaired.checksum_valid and old.checksum:
        return repaired, True
    if parent_fields is None:
        return header, False
    return replace(
        header,
        parent_uuid=parent_fields.parent_uuid,
        parent_timestamp=parent_fields.parent_timestamp,
        parent_name=parent_fields.parent_name,
    ), False


def _evidence(header: Header, proved: bool, exact: bool) -> list[str]:
    number = "as many as the disk needs" if exact else "more than the disk needs, up to its batmap"
    lines = [
        f"the table at byte {header.bat_offset} has {header.max_entries} possible entries, "
        f"{number} with blocks of {size_text(header.block_bytes)}"
    ]
    if proved:
        lines.append("the checksum that is left of the old header fits, its other fields included")
    return lines


def _confirmed(
    storage: Storage, footer: Footer, ends: Ends, found: list[RebuiltHeader]
) -> list[RebuiltHeader]:
    """The candidates whose block size is that of the blocks in the file, whatever a table says.

    Two blocks that follow one another could pass for one of twice the size. Raises CorruptImage.
    """
    sizes = [header.block_bytes for header, _ in headers_by_pattern(storage, footer, ends)]
    if len(sizes) == 1 and (right := [one for one in found if one.header.block_bytes == sizes[0]]):
        return right
    if sizes:
        text = " or ".join(str(size) for size in sizes)
        raise _lost(storage, f"its blocks look as if they had {text} bytes, which no table proves")
    # Without data in a block only a batmap shows where the table ends.
    if right := [one for one in found if read_batmap_header(storage, one.header) is not None]:
        return right
    raise _lost(storage, "no block has data, so there is neither proof nor anything to be rescued")


def _the_best(
    storage: Storage, footer: Footer, ends: Ends, tried: list[RebuiltHeader]
) -> RebuiltHeader:
    """The only sound candidate of the best evidence. Raises CorruptImage."""
    if not tried:
        raise _lost(storage, "no table in the file can be its BAT")
    sound = [one for one in tried if one.sound]
    if not sound:
        raise _lost(storage, "with each table that can be its BAT, blocks are damaged or left over")
    best = [one for one in sound if one.proved] or [one for one in sound if one.exact] or sound
    if not best[0].proved:
        best = _confirmed(storage, footer, ends, best)
    if len(best) > 1:
        sizes = " or ".join(size_text(one.header.block_bytes) for one in best)
        raise _lost(storage, f"nothing shows which one is right: blocks of {sizes}")
    return best[0]


def _candidates(
    storage: Storage, footer: Footer, old: Header, offset: int, file_size: int
) -> Iterator[Header]:
    # Elsewhere a part of a damaged table, or a bitmap, could pass for a whole one.
    places = dict.fromkeys((offset + SIZE, old.bat_offset))
    starts = [one for one in places if one % SECTOR == 0 and offset + SIZE <= one < file_size]
    for block_bytes in BLOCK_SIZES:
        layout = BlockLayout(block_bytes)
        need = layout.blocks_for(footer.current_size)
        if not 0 < need <= MAX_ENTRIES:
            continue
        for start in starts:
            entries = _entries_at(storage, layout, start, need, file_size)
            if entries is not None:
                yield Header(entries, block_bytes, start)


def _possible(raw: bytes, file_sectors: int) -> bool:
    """Whether a sector may be a part of a BAT: free and possible entries, then padding."""
    entries = unpack_bat(raw, len(raw) // 4)
    while entries and entries[-1] == 0:
        entries.pop()
    return len(entries) > 0 and _entries_possible(entries, file_sectors)


def _entries_possible(entries: "array[int]", file_sectors: int) -> bool:
    return all(entry == UNUSED or 0 < entry < file_sectors for entry in entries)


def _entries_at(
    storage: Storage, layout: BlockLayout, start: int, need: int, file_size: int
) -> int | None:
    """The number of entries of a BAT at byte `start`, or None where none can be."""
    if start + 4 * need > file_size:
        return None
    first = storage.pread(start, min(4 * need, SECTOR))
    if not _possible(first, file_size // SECTOR):
        return None
    count = _counted_by_batmap(storage, start, need)
    header = Header(count, layout.block_bytes, start)
    raw = storage.pread(start, header.bat_bytes + SECTOR)
    entries = unpack_bat(raw, count)
    if len(entries) < count or not _entries_possible(entries, file_size // SECTOR):
        return None
    padding = raw[4 * count : header.bat_bytes]
    if padding.strip(b"\0") and padding.strip(b"\xff"):
        return None
    used = sorted(entry for entry in entries if entry != UNUSED)
    if any(other - one < layout.total_sectors for one, other in pairwise(used)):
        return None
    behind = raw[header.bat_bytes :]
    # A table that goes on is longer than this one, unless a block begins there.
    goes_on = _possible(behind, file_size // SECTOR) and header.bat_end // SECTOR not in used
    return None if goes_on else count


def _counted_by_batmap(storage: Storage, start: int, need: int) -> int:
    """The number of entries of a BAT that ends where a batmap begins; else `need`.

    A BAT may be larger than its disk needs. blktap pads it with zeros.
    """
    raw = storage.pread(start, 4 * need + _SEARCHED)
    for end in range(-(-4 * need // SECTOR) * SECTOR, len(raw) - SECTOR + 1, SECTOR):
        if raw.startswith(BATMAP_COOKIE, end):
            return max(need, len(raw[:end].rstrip(b"\0")) // 4)
        if not raw[end : end + SECTOR].strip(b"\0") or not _possible(raw[end : end + SECTOR], 1):
            break
    return need


def headers_by_pattern(
    storage: Storage, footer: Footer, ends: Ends
) -> list[tuple[Header, list[Orphan]]]:
    """The headers with which most data of the file is in blocks, each with those blocks.

    None is found where no block has data. Several are found where blocks with little data could
    have more than one size, or more blocks are found with a smaller one.
    """
    known = ends.footer is not None or ends.killed
    end = (ends.footer_offset if known else ends.file_size) // SECTOR
    found: list[tuple[Header, list[Orphan]]] = []
    for block_bytes in BLOCK_SIZES:
        layout = BlockLayout(block_bytes)
        need = layout.blocks_for(footer.current_size)
        if not 0 < need <= MAX_ENTRIES:
            continue
        header = Header(need, block_bytes, HEADER_OFFSET + SIZE)
        placement = Placement(
            empty_bat(need), layout, header.bat_offset, ends.file_size, footer.bitmaps_reversed
        )
        gap = (header.bat_end // SECTOR, end)
        if blocks := find_orphans(storage, placement, [gap], None, need):
            found.append((header, blocks))
    present = [sum(block.present for block in blocks) for _, blocks in found]
    best = [one for one, number in zip(found, present, strict=True) if number == max(present)]
    # The data of a block can pass for the bitmap of a larger one that swallows the next block.
    return [
        one
        for one in found
        if one in best
        or any(
            one[0].block_bytes < header.block_bytes and len(one[1]) > len(blocks)
            for header, blocks in best
        )
    ]
