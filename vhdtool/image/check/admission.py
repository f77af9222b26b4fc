"""The admission gate: the one place that decides whether an image may be read or written.

An image that `check` calls corrupt is neither read nor written. The check reads the bitmap of
every block, which takes seconds for a full disk of 2040 GiB. Readers and servers therefore first
try to prove from the tables alone, in milliseconds, that the check would find nothing; only where
that fails does the check itself decide.

`info`, `check`, `damage`, `scan`, `meta`, `repair` and `--salvage` are for damaged images. They
read metadata without the gate.
"""

from array import array
from bisect import bisect_left
from itertools import compress, pairwise
from typing import TYPE_CHECKING

from vhdtool.errors import CorruptImage, UncleanImage
from vhdtool.image.check.regions import (
    Region,
    end_region,
    locator_fault,
    locator_regions,
    table_regions,
    used_locators,
)
from vhdtool.image.metadata.bat_sort import sort_entries, used_entries
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
    # The check is imported late, see _refuse_damaged; so is all that it needs.
    from vhdtool.image.metadata.findings import Finding

TOLERATED_BY_READERS = frozenset({"batmap-overstates"})
"""Codes of damage that does not affect readers, which trust the bitmaps and not the batmap."""


def readable(storage: Storage) -> Metadata:
    """Read the metadata of an image whose data can be trusted, closed or not.

    Raises NotAVhd, or CorruptImage.
    """
    return _require_sound_tables(storage, read_metadata(storage))


def changeable(storage: Storage, closed: bool = True) -> Metadata:
    """Read the metadata of an image of which a writer may change fields, and no data.

    With `closed` a valid footer has to end it. A batmap that overstates is tolerated: it stays as
    it is, and the check still finds it. Raises NotAVhd, or CorruptImage.
    """
    return _require_sound_tables(storage, read_metadata(storage, need_end_footer=closed))


def _require_sound_tables(storage: Storage, metadata: Metadata) -> Metadata:
    header, layout = metadata.header, metadata.layout
    if header is None or layout is None:
        _refuse_damaged(storage, TOLERATED_BY_READERS)
        return metadata
    used, disjoint = sort_entries(
        used_entries(pack_bat(metadata.bat), len(metadata.bat)),
        layout.total_sectors,
        metadata.ends.file_size // SECTOR,
    )
    full = unpack_flags(believed_batmap(storage, metadata), len(metadata.bat))
    if UNUSED in compress(metadata.bat, full) or not _plainly_sound(
        storage, metadata.ends, metadata.footer, header, used, disjoint
    ):
        _refuse_damaged(storage, TOLERATED_BY_READERS)
    return metadata


def writable(storage: Storage, closed: bool = True) -> Metadata:
    """Read the metadata of an image whose data a writer may change, alone.

    With `closed` a valid footer has to end it. Reads the bitmap of every block.
    Raises NotAVhd, or CorruptImage.
    """
    metadata = read_metadata(storage, need_end_footer=closed)
    _refuse_damaged(storage, frozenset())
    return metadata


def require_servable(storage: Storage, tables: BlockTables) -> None:
    """Raise CorruptImage unless a server may read and write the image.

    Batmap and bitmaps are not compared: a server cannot wait for a million reads.
    """
    if UNUSED in compress(tables.bat, tables.full) or not _plainly_sound(
        storage, tables.ends, tables.footer, tables.header, tables.used, tables.disjoint
    ):
        _refuse_damaged(storage, TOLERATED_BY_READERS)


def require_closed_fixed(storage: Storage) -> Metadata:
    """Read the metadata of a fixed image that may be read and written.

    Raises NotAVhd, CorruptImage, or UncleanImage where no valid footer ends it.
    """
    end = read_ends(storage).footer
    if end is None or not end.valid:
        raise UncleanImage(f"{storage.name}: no valid footer at its end; see `vhdtool check`")
    return readable(storage)


def _refuse_damaged(storage: Storage, tolerated: frozenset[str]) -> None:
    """Raise CorruptImage with the first corrupt finding of the check that is not tolerated."""
    # Imported late: an image without damage is opened without it, and a server starts faster.
    from vhdtool.image.check.image import check

    # In "live" mode the file may grow meanwhile; what is corrupt is the same in all modes.
    for one in check(storage, "live").findings:
        if one.severity == "corrupt" and one.code not in tolerated:
            raise CorruptImage(_reason(storage.name, one))


def _reason(name: str, one: "Finding") -> str:
    # Imported late, as the check.
    from vhdtool.image.check.advice import SALVAGE, advice_for

    advice = advice_for(one.code)
    if advice == SALVAGE:
        advice = "`vhdtool check` lists all damage, `vhdtool convert --salvage` copies the rest"
    if one.code == "batmap-unallocated":
        # A repair refuses if the block is an orphan, and live mode does not search the whole file.
        advice = "`vhdtool check` says what helps"
    return f"{name}: {one.message} ({one.code}); {advice.format(image=name)}"


def _plainly_sound(
    storage: Storage,
    ends: Ends,
    footer: Footer,
    header: Header,
    used: "array[int]",
    disjoint: bool,
) -> bool:
    """Whether the tables prove that the check finds nothing corrupt, apart from the batmap.

    `used`: BAT entries of the allocated blocks, ascending; `disjoint`: no two blocks overlap.
    """
    if any(one is not None and one.poisoned for one in (ends.footer, ends.copy)):
        return False
    if not footer.current_size or footer.data_offset % SECTOR or header.max_entries > MAX_ENTRIES:
        return False
    layout = BlockLayout(header.block_bytes)
    if used and not (
        disjoint and used[0] and _in_file(storage, layout, used[-1], footer.bitmaps_reversed)
    ):
        return False
    batmap = read_batmap_header(storage, header) if batmap_possible(footer) else None
    regions = [*table_regions(footer, header, footer.data_offset, batmap), *end_region(ends)]
    if footer.disk_type == DIFFERENCING:
        if any(locator_fault(one, ends.file_size) for _, one in used_locators(header)):
            return False
        regions += locator_regions(header, ends.file_size)
    return _regions_sound(regions, used, layout.total_sectors)


def _in_file(storage: Storage, layout: BlockLayout, entry: int, bits_reversed: bool) -> bool:
    """Whether the file has the bitmap and every present sector of the block at `entry`."""
    bitmap = storage.pread(entry * SECTOR, layout.bitmap_bytes)
    if bits_reversed:
        bitmap = reversed_bits(bitmap)
    # The size is read after the bitmap: a writer extends the file before it sets bits.
    in_file = storage.size() // SECTOR - layout.data_sector(entry)
    return in_file >= layout.sectors or (in_file >= 0 and last_set(bitmap) < in_file)


def _regions_sound(regions: list[Region], used: "array[int]", total: int) -> bool:
    """Whether no two regions overlap, and no block overlaps a region that is not soft."""
    ordered = sorted(regions, key=lambda region: region.first)
    if any(one.end > other.first for one, other in pairwise(ordered)):
        return False
    for region in regions:
        index = bisect_left(used, max(region.first - total + 1, 0))
        if not region.soft and index < len(used) and used[index] < region.end:
            return False
    return True
