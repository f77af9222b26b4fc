"""Where the metadata of an image lies: no block, and no other metadata, may overlap it.

The admission gate uses this for every image that is opened, so it imports little.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from vhdtool.image.metadata.ends import Ends
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_expected
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import Header, Locator
from vhdtool.vhd.units import SECTOR, pad

LARGEST_LOCATOR = 64 << 10
"""Bytes; longer than any path."""


@dataclass(frozen=True, slots=True)
class Region:
    """Metadata at sectors [first, end) of the file.

    `soft`: a block that overlaps it loses no data.
    """

    name: str
    first: int
    end: int
    soft: bool = False


def table_regions(
    footer: Footer, header: Header, header_offset: int, batmap: BatmapHeader | None
) -> list[Region]:
    """Footer copy, header, BAT and batmap."""
    first = header_offset // SECTOR
    table = header.bat_offset // SECTOR
    return [
        Region("the footer's copy", 0, 1),
        Region("the header", first, first + 2),
        Region("the BAT", table, table + header.bat_bytes // SECTOR),
        *_batmap_regions(header, batmap, footer),
    ]


def _batmap_regions(header: Header, batmap: BatmapHeader | None, footer: Footer) -> list[Region]:
    """The batmap, or the space that belongs to it when its header is lost."""
    start = header.bat_end // SECTOR
    if batmap is not None:
        first = batmap.offset // SECTOR
        return [
            Region("the batmap's header", start, start + 1),
            Region("the batmap", first, first + batmap.sectors),
        ]
    if batmap_expected(footer):
        size = 1 + batmap_bytes(header.max_entries) // SECTOR
        return [Region("the batmap", start, start + size, soft=True)]
    return []


def end_region(ends: Ends) -> list[Region]:
    """The footer at the end, if there is one."""
    if ends.footer is None:
        return []
    return [Region("the footer", ends.footer_offset // SECTOR, pad(ends.file_size) // SECTOR)]


def locator_regions(header: Header, file_size: int) -> list[Region]:
    """The space of every parent locator without a fault."""
    regions = []
    for name, locator in used_locators(header):
        if locator_fault(locator, file_size) is None:
            first = locator.offset // SECTOR
            size = max(locator.capacity or 0, pad(locator.length))
            regions.append(Region(name, first, first + size // SECTOR))
    return regions


def used_locators(header: Header) -> Iterator[tuple[str, Locator]]:
    """(name for messages, locator) of each parent locator in use."""
    for index, locator in enumerate(header.locators):
        if locator.used:
            yield f"parent locator {index + 1}", locator


def locator_fault(locator: Locator, file_size: int) -> str | None:
    """The fault of a locator's offset, length or space as the predicate of a sentence, or None."""
    space = locator.capacity
    if space is None:
        return f"has the space {locator.space}: neither sectors nor whole sectors in bytes"
    if space > LARGEST_LOCATOR or locator.length > LARGEST_LOCATOR:
        return f"is too large ({space} bytes for a path of {locator.length})"
    if locator.length > space:
        return f"has a path of {locator.length} bytes in a space of {space} bytes"
    if locator.offset % SECTOR or locator.offset + locator.length > file_size:
        return f"lies outside the file or between sectors (byte {locator.offset})"
    return None


def first_free_sector(
    storage: Storage, ends: Ends, layout: BlockLayout, bat: "array[int]", end: int
) -> int:
    """The sector from which a writer may allocate: `end`, where all that the BAT names ends, or
    the end of the orphan blocks between that and the footer of a closed image.

    Orphans are searched only where a whole block fits between data and footer. In an image that
    was not closed they are mostly interrupted allocations, and their space is used again.
    """
    footer = ends.footer_offset // SECTOR
    closed = ends.footer is not None and ends.footer.valid
    device = storage.is_block_device
    if device or not closed or footer - end < layout.total_sectors:
        return end
    # Imported late: servers start faster without it, and few images come this far.
    from vhdtool.image.metadata.orphans import last_orphan_end

    return max(end, last_orphan_end(storage, layout, bat, end, footer))
