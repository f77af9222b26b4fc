"""Blocks without a BAT entry: found by their pattern, and placed where evidence puts them."""

from array import array

from vhdtool.image.check.overlaps import gaps
from vhdtool.image.check.regions import end_region, locator_regions, table_regions
from vhdtool.image.journal.overlay import OverlayStorage
from vhdtool.image.metadata.ends import HEADER_OFFSET, Ends
from vhdtool.image.metadata.orphans import Orphan, find_orphans
from vhdtool.image.metadata.placement import Placement
from vhdtool.image.metadata.read import Metadata, read_batmap, read_batmap_header
from vhdtool.image.salvage.numbering import numbered
from vhdtool.ranges import subtract
from vhdtool.storage import Storage
from vhdtool.vhd.bat import empty_bat, pack_bat, unpack_bat
from vhdtool.vhd.batmap import batmap_checksum, batmap_possible
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

Doubt = tuple[int, int, str]
"""(start, end, reason) of guest bytes that cannot be trusted."""


def leads_to(storage: Storage, header: Header, blocks: list[Orphan]) -> int:
    """The number of these blocks that the BAT of a header names.

    It is 0 where more of its entries lead elsewhere: then it is no BAT, or nearly all is lost.
    """
    raw = storage.pread(header.bat_offset, 4 * header.max_entries)
    used = [one for one in unpack_bat(raw, len(raw) // 4) if one not in (0, UNUSED)]
    hits = len({one.entry for one in blocks} & set(used))
    return hits if 2 * hits >= len(used) else 0


class WithoutBat(OverlayStorage):
    """A view of an image without header and BAT: with this header, and a BAT of free entries.

    `reason`: why the BAT is not used.
    """

    def __init__(self, storage: Storage, header: Header, reason: str) -> None:
        self.reason = reason
        table = pack_bat(empty_bat(header.max_entries))
        pieces = [(HEADER_OFFSET, header.pack()), (header.bat_offset, table)]
        super().__init__(storage, pieces)


def _end_sector(ends: Ends) -> int:
    known = ends.footer is not None or ends.killed
    return (ends.footer_offset if known else ends.file_size) // SECTOR


def place(
    storage: Storage, metadata: Metadata, doubts: list[Doubt]
) -> tuple[list[Doubt], list[Orphan], list[Orphan]]:
    """Enter orphans in the BAT of `metadata` where evidence shows their guest blocks.

    Returns (ranges that stay in doubt, placed orphans, other orphans). Entries of blocks in doubt
    count as lost, so that what they name is searched for blocks, too.
    """
    layout, header = metadata.layout, metadata.header
    assert layout is not None
    assert header is not None
    size, need = layout.block_bytes, layout.blocks_for(metadata.size)
    bat = array("I", metadata.bat)
    for start, end, _ in doubts:
        for block in range(start // size, min(-(-end // size), len(bat))):
            bat[block] = UNUSED
    known = {entry: block for block, entry in enumerate(bat) if entry != UNUSED}
    orphans = numbered(storage, _orphans(storage, metadata, header, bat), known, need)
    placed = [one for one in orphans if one.guest is not None and one.guest < len(bat)]
    for one in placed:
        assert one.guest is not None
        metadata.bat[one.guest] = one.entry
    known_now = sorted(
        (one.guest * size, (one.guest + 1) * size) for one in placed if one.guest is not None
    )
    left = [
        (first, stop, reason)
        for start, end, reason in doubts
        for first, stop in subtract((start, end), known_now)
    ]
    return left, placed, [one for one in orphans if one not in placed]


def _orphans(
    storage: Storage, metadata: Metadata, header: Header, bat: "array[int]"
) -> list[Orphan]:
    """All blocks in the file that `bat` does not name."""
    footer, ends, layout = metadata.footer, metadata.ends, metadata.layout
    assert layout is not None
    offset = footer.data_offset if footer.data_offset < ends.file_size else HEADER_OFFSET
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    regions = [
        *table_regions(footer, header, offset, batmap),
        *locator_regions(header, ends.file_size),
        *end_region(ends),
    ]
    placement = Placement(bat, layout, header.bat_offset, ends.file_size, footer.bitmaps_reversed)
    free = gaps(placement, regions, _end_sector(ends))
    bits = read_batmap(storage, batmap, header) if batmap is not None else None
    if bits is not None and batmap is not None:
        believed = batmap_checksum(bits, footer.current_size, batmap.version) == batmap.checksum
        bits = bits if believed else None
    return find_orphans(storage, placement, free, bits, layout.blocks_for(metadata.size))
