"""May this image be read? May it be written? The one place that decides.

The check is the judge: what it calls corrupt is neither read nor written. It looks at every block,
which takes seconds for a full disk of 2040 GiB. So readers and servers first try to prove from the
tables alone, in milliseconds, that the check would find nothing; only where that fails does the
check itself decide.

`info`, `check`, `damage`, `scan`, `meta`, `repair` and `--salvage` are there for damaged images.
They read metadata without asking here.
"""

from array import array
from bisect import bisect_left
from itertools import compress, pairwise
from typing import TYPE_CHECKING

from vhdtool.errors import CorruptImage, UncleanImage
from vhdtool.image.check.regions import Region, end_region, table_regions
from vhdtool.image.metadata.bat_sort import in_order, used_places
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.image.metadata.read import (
    BlockTables,
    Metadata,
    believed_batmap,
    read_batmap_header,
    read_metadata,
)
from vhdtool.storage import Storage
from vhdtool.vhd.bat import pack_bat
from vhdtool.vhd.batmap import batmap_possible
from vhdtool.vhd.bits import last_set, reversed_bits, unpack_flags
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import MAX_ENTRIES, SECTOR, UNUSED

if TYPE_CHECKING:
    from vhdtool.image.metadata.findings import Finding

BITMAPS_KNOW = frozenset({"batmap-overstates"})
"""Damage that no reader sees, since readers go by the bitmaps."""


def readable(storage: Storage) -> Metadata:
    """The metadata of an image whose data can be believed, closed or not.

    Raises NotAVhd, or CorruptImage.
    """
    return _with_sound_tables(storage, read_metadata(storage))


def changeable(storage: Storage, closed: bool = True) -> Metadata:
    """The metadata of an image of which a writer may change fields, and no data.

    With `closed` a valid footer has to end it. A batmap that calls a sparse block full is no
    obstacle: it stays as it is, and the check goes on telling. Raises NotAVhd, or CorruptImage.
    """
    return _with_sound_tables(storage, read_metadata(storage, need_end_footer=closed))


def _with_sound_tables(storage: Storage, metadata: Metadata) -> Metadata:
    header, layout = metadata.header, metadata.layout
    if header is None or layout is None:
        _refuse(storage, BITMAPS_KNOW)
        return metadata
    used, apart = in_order(
        used_places(pack_bat(metadata.bat), len(metadata.bat)),
        layout.total_sectors,
        metadata.ends.file_size // SECTOR,
    )
    full = unpack_flags(believed_batmap(storage, metadata), len(metadata.bat))
    if UNUSED in compress(metadata.bat, full) or not _plainly_sound(
        storage, metadata.ends, metadata.footer, header, used, apart
    ):
        _refuse(storage, BITMAPS_KNOW)
    return metadata


def writable(storage: Storage, closed: bool = True) -> Metadata:
    """The metadata of an image that nobody else has open, and whose data a writer may change.

    With `closed` a valid footer has to end it. Reads the bitmap of every block.
    Raises NotAVhd, or CorruptImage.
    """
    metadata = read_metadata(storage, need_end_footer=closed)
    _refuse(storage, frozenset())
    return metadata


def require_servable(storage: Storage, opened: BlockTables) -> None:
    """Raises CorruptImage unless an image may be read and written by a server.

    Batmap and bitmaps are not compared: no server can wait for a million reads.
    """
    if UNUSED in compress(opened.bat, opened.full) or not _plainly_sound(
        storage, opened.ends, opened.footer, opened.header, opened.used, opened.apart
    ):
        _refuse(storage, BITMAPS_KNOW)


def require_closed_fixed(storage: Storage) -> Metadata:
    """The metadata of a fixed image that may be read and written. Raises CorruptImage, NotAVhd,
    or UncleanImage where no valid footer ends it.
    """
    end = read_ends(storage).end
    if end is None or not end.valid:
        raise UncleanImage(f"{storage.name}: no valid footer at its end; see `vhdtool check`")
    return readable(storage)


def _refuse(storage: Storage, harmless: frozenset[str]) -> None:
    """Raises CorruptImage with what the check finds first, but for codes that are harmless."""
    from vhdtool.image.check.image import check

    # In "live" mode the check tolerates a file that grows meanwhile; what it calls corrupt is the
    # same in all modes.
    for one in check(storage, "live").findings:
        if one.severity == "corrupt" and one.code not in harmless:
            raise CorruptImage(_reason(storage.name, one))


def _reason(name: str, one: "Finding") -> str:
    from vhdtool.image.check.advice import SALVAGE, advice_for

    advice = advice_for(one.code)
    if advice == SALVAGE:
        advice = "`vhdtool check` lists all damage, `vhdtool convert --salvage` copies the rest"
    if one.code == "batmap-unallocated":
        # Where the block is still in the file a repair refuses, and this look did not search it.
        advice = "`vhdtool check` says what helps"
    return f"{name}: {one.message} ({one.code}); {advice.format(image=name)}"


def _plainly_sound(
    storage: Storage,
    ends: Ends,
    footer: Footer,
    header: Header,
    used: "array[int]",
    apart: bool,
) -> bool:
    """Whether the tables prove that the check finds nothing corrupt, but for the batmap.

    `used`: the places that the BAT names, rising; `apart`: whether the blocks there do not overlap.
    """
    if any(one is not None and one.poisoned for one in (ends.end, ends.copy)):
        return False
    if not footer.current_size or footer.data_offset % SECTOR or header.max_entries > MAX_ENTRIES:
        return False
    layout = BlockLayout(header.block_bytes)
    if used and not (
        apart and used[0] and _all_in_file(storage, layout, used[-1], footer.bitmaps_reversed)
    ):
        return False
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    regions = [*table_regions(footer, header, footer.data_offset, batmap), *end_region(ends)]
    if footer.disk_type == DIFFERENCING:
        from vhdtool.image.check.locators import locator_regions
        from vhdtool.image.metadata.collector import Collector

        found = Collector("live")
        regions += locator_regions(header, ends.file_size, found)
        if any(one.severity == "corrupt" for one in found.findings()):
            return False
    return _free_of_blocks(regions, used, layout.total_sectors)


def _all_in_file(storage: Storage, layout: BlockLayout, entry: int, backwards: bool) -> bool:
    """Whether the file has the bitmap and every present sector of its last block."""
    bitmap = storage.pread(entry * SECTOR, layout.bitmap_bytes)
    if backwards:
        bitmap = reversed_bits(bitmap)
    # The size after the bitmap: a writer lets the file grow first.
    there = storage.size() // SECTOR - layout.data_sector(entry)
    return there >= layout.sectors or (there >= 0 and last_set(bitmap) < there)


def _free_of_blocks(regions: list[Region], used: "array[int]", total: int) -> bool:
    """Whether no two of the regions overlap, and no block stands on one where that loses data."""
    ordered = sorted(regions, key=lambda region: region.first)
    if any(one.end > other.first for one, other in pairwise(ordered)):
        return False
    for region in regions:
        at = bisect_left(used, max(region.first - total + 1, 0))
        if not region.soft and at < len(used) and used[at] < region.end:
            return False
    return True
