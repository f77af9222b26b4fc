"""Where the metadata and the data of an image end. All in sectors of the file."""

import errno
from array import array

from vhdtool.storage import Storage, StorageError
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_expected
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, Footer
from vhdtool.vhd.header import SIZE, Header
from vhdtool.vhd.units import SECTOR, UNUSED, pad


def locator_ranges(footer: Footer, header: Header) -> list[tuple[int, int]]:
    """(byte offset, bytes) of the space of each parent locator.

    The locators of an image without a parent are ignored: their fields may have any value.
    """
    if footer.disk_type != DIFFERENCING:
        return []
    return [(one.offset, one.capacity) for one in header.locators if one.used and one.capacity]


def end_of_headers(
    footer: Footer, header: Header, batmap: BatmapHeader | None, file_size: int | None = None
) -> int:
    """The sector behind header, BAT, batmap (or the space for one) and locators.

    Structures that exceed a file of `file_size` bytes are damaged and are ignored.
    """
    ends = [footer.data_offset + SIZE]
    if batmap is not None:
        ends += [header.bat_end + SECTOR, batmap.offset + batmap.sectors * SECTOR]
    elif batmap_expected(footer):
        # The batmap is lost; its space is reserved, so that a repair can rebuild it.
        ends.append(header.bat_end + SECTOR + batmap_bytes(header.max_entries))
    ends += [offset + size for offset, size in locator_ranges(footer, header)]
    inside = [end for end in ends if file_size is None or end <= file_size]
    return pad(max(header.bat_end, *inside)) // SECTOR


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


def footer_offset(storage: Storage, end: int) -> int:
    """The byte offset of the footer of an image whose data ends at byte `end`.

    On a block device, whose length is fixed, the footer is at the end of the device. Raises
    StorageError when the data would overlap it.
    """
    if not storage.is_block_device:
        return end
    last = storage.size() - SECTOR
    if end > last:
        raise StorageError(storage.name, f"write data up to byte {end}", errno.ENOSPC)
    return last
