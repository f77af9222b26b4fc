"""Where metadata and data of an image end. All in sectors of the file."""

import errno
from array import array

from vhdtool.image.metadata.ends import Ends
from vhdtool.storage import Storage, StorageError
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_expected
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, Footer
from vhdtool.vhd.header import SIZE, Header
from vhdtool.vhd.units import SECTOR, UNUSED, pad


def paths_kept(footer: Footer, header: Header) -> list[tuple[int, int]]:
    """(byte offset, bytes) of each path to the parent; a disk without a parent has none.

    Its locators, if it has any, are nobody's and may say anything.
    """
    if footer.disk_type != DIFFERENCING:
        return []
    return [(one.offset, one.room) for one in header.locators if one.used and one.room]


def end_of_headers(
    footer: Footer, header: Header, batmap: BatmapHeader | None, file_size: int | None = None
) -> int:
    """The sector behind header, BAT, batmap (or its place) and locators.

    What leads out of a file of `file_size` bytes is damage, and does not count.
    """
    ends = [footer.data_offset + SIZE]
    if batmap is not None:
        ends += [header.bat_end + SECTOR, batmap.offset + batmap.sectors * SECTOR]
    elif batmap_expected(footer):
        # It is lost, and its place is kept for a repair.
        ends.append(header.bat_end + SECTOR + batmap_bytes(header.max_entries))
    ends += [offset + room for offset, room in paths_kept(footer, header)]
    inside = [end for end in ends if file_size is None or end <= file_size]
    return pad(max(header.bat_end, *inside)) // SECTOR


def footer_place(storage: Storage, end: int) -> int:
    """The byte where the footer of an image goes whose data ends at byte `end`.

    A block device keeps its length, and has its footer at its end. Raises StorageError when the
    data would reach into it.
    """
    if not storage.is_block_device:
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
    device = storage.is_block_device
    if device or not closed or foot - end < layout.total_sectors:
        return end
    from vhdtool.image.metadata.orphans import last_orphan_end

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
