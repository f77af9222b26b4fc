"""Where the metadata of an image is: no block, and no other metadata, may be there.

Openers ask this of every image, so it loads little.
"""

from dataclasses import dataclass

from vhdtool.image.metadata.ends import Ends
from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_expected
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, pad


@dataclass(frozen=True, slots=True)
class Region:
    """Metadata at sectors [first, end) of the file. `soft`: a block on it loses no data."""

    name: str
    first: int
    end: int
    soft: bool = False


def table_regions(
    footer: Footer, header: Header, header_at: int, batmap: BatmapHeader | None
) -> list[Region]:
    """Footer copy, header, BAT and batmap."""
    first = header_at // SECTOR
    table = header.bat_offset // SECTOR
    return [
        Region("the footer's copy", 0, 1),
        Region("the header", first, first + 2),
        Region("the BAT", table, table + header.bat_bytes // SECTOR),
        *_batmap_regions(header, batmap, footer),
    ]


def _batmap_regions(header: Header, batmap: BatmapHeader | None, footer: Footer) -> list[Region]:
    """Where the batmap is, or belongs when its header is gone."""
    at = header.bat_end // SECTOR
    if batmap is not None:
        first = batmap.offset // SECTOR
        return [
            Region("the batmap's header", at, at + 1),
            Region("the batmap", first, first + batmap.sectors),
        ]
    if batmap_expected(footer):
        size = 1 + batmap_bytes(header.max_entries) // SECTOR
        return [Region("the batmap", at, at + size, soft=True)]
    return []


def end_region(ends: Ends) -> list[Region]:
    """Where the footer at the end is, if there is one."""
    if ends.end is None:
        return []
    return [Region("the footer", ends.end_offset // SECTOR, pad(ends.file_size) // SECTOR)]
