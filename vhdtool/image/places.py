"""Where metadata and data of an image end. All in sectors of the file."""

import errno
from array import array

from vhdtool.image.metadata import Ends
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_expected
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import SIZE, Header
from vhdtool.vhd.units import SECTOR, UNUSED, pad


def end_of_headers(footer: Footer, header: Header, batmap: BatmapHeader | None) -> int:
    """The sector behind header, BAT, batmap (or its place) and locators."""
    end = max(footer.data_offset + SIZE, header.bat_end)
    if batmap is not None:
        end = max(end, header.bat_end + SECTOR, batmap.offset + batmap.sectors * SECTOR)
    elif batmap_expected(footer):
        # It is lost, and its place is kept for a repair.
        end = max(end, header.bat_end + SECTOR + batmap_bytes(header.max_entries))
    for locator in header.locators:
        if locator.used and locator.room is not None:
            end = max(end, locator.offset + locator.room)
    return pad(end) // SECTOR


def footer_place(storage: Storage, end: int) -> int:
    """The byte where the footer of an image goes whose data ends at byte `end`.

    A block device keeps its length, and has its footer at its end. Raises StorageError when the
    data would reach into it.
    """
    if not getattr(storage, "is_block_device", False):
        return end
    last = storage.size() - SECTOR
    if end > last:
        raise StorageError(storage.name, f"write data up to byte {end}", errno.ENOSPC)
    return last


def end_of_kept(
    storage: Storage, ends: Ends, layout: BlockLayout, bat: "array[int]", end: int
) -> int:
    """The sector behind which a writer may put new data: `end`, where what the BAT names ends, or
    the end of the orphan blocks between that and the footer of a closed image.

    Costs nothing unless the footer stands a whole block behind the data. In an image that was not
    closed such blocks are mostly allocations that a crash cut off, and their space is used again.
    """
    foot = ends.end_offset // SECTOR
    closed = ends.end is not None and ends.end.valid
    device = getattr(storage, "is_block_device", False)
    if device or not closed or foot - end < layout.total_sectors:
        return end
    from vhdtool.image.checks.orphans import last_orphan_end

    return max(end, last_orphan_end(storage, layout, bat, end, foot))


def end_of_data(
    footer: Footer,
    header: Header,
    batmap: BatmapHeader | None,
    bat: "array[int]",
) -> int:
    """The sector behind the last block, or behind the headers when there is no block."""
    end = end_of_headers(footer, header, batmap)
    layout = BlockLayout(header.block_bytes)
    highest = max((entry for entry in bat if entry != UNUSED), default=-1)
    return max(end, layout.end_sector(highest)) if highest >= 0 else end
