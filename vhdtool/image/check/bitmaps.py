"""Check of sector bitmaps and batmap: they agree, and every present sector is in the file."""

from vhdtool.image.check.collector import Collector
from vhdtool.image.metadata.placement import BLOCK_BITS, BLOCK_MASK, Placement
from vhdtool.image.metadata.read import read_batmap
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import (
    VERSION,
    BatmapHeader,
    batmap_checksum,
    batmap_expected,
)
from vhdtool.vhd.bits import all_set, last_set, reversed_bits
from vhdtool.vhd.bits import test_bit as bit
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED


def check_batmap(
    storage: Storage,
    header: Header,
    footer: Footer,
    batmap: BatmapHeader | None,
    collector: Collector,
) -> bytes | None:
    """Check the batmap itself; returns its bits, or None where they cannot be trusted."""
    offset = header.bat_end
    if batmap is None:
        if batmap_expected(footer):
            collector.unclean(
                "batmap-missing",
                "the batmap that this creator's version promises is missing; "
                "the real tapdisk refuses the image until `vhdtool repair`",
                offset,
            )
        return None
    if batmap.version > VERSION:
        text = f"batmap version 0x{batmap.version:08x} is too new"
        collector.info("batmap-version", text, offset)
    bits = read_batmap(storage, batmap, header)
    if bits is None or batmap.offset % SECTOR:
        collector.unclean(
            "batmap-place",
            f"a batmap of {batmap.sectors} sectors at byte {batmap.offset} cannot be right",
            offset,
        )
        return None
    if batmap_checksum(bits, footer.current_size, batmap.version) != batmap.checksum:
        collector.unclosed("batmap-checksum", "the batmap's checksum is wrong", offset)
        return None
    return bits


def check_bitmaps(
    storage: Storage, placement: Placement, batmap: bytes | None, read: bool, collector: Collector
) -> None:
    """Check the bitmap of each block against the batmap and the end of the file.

    Without `read` the batmap alone is compared with the end of the file.
    """
    layout = placement.layout
    length, sectors = layout.bitmap_bytes, layout.sectors
    full = b"\xff" * length if sectors % 8 == 0 else b""
    last = placement.file_sectors - layout.total_sectors
    not_in_batmap = []
    # Inlined: a million calls of placement.read_bitmap would cost as much as their reads.
    pread, bits_reversed = storage.pread, placement.bitmaps_reversed
    for key in placement.sorted_keys:
        entry, block = key >> BLOCK_BITS, key & BLOCK_MASK
        marked_full = batmap is not None and bit(batmap, block)
        if not read:
            if entry > last:
                _cut_off(placement, block, entry, sectors - 1 if marked_full else -1, collector)
            continue
        bits = pread(entry * SECTOR, length)
        if bits_reversed:
            bits = reversed_bits(bits)
        is_full = bits == full or (not full and all_set(bits, sectors))
        if marked_full and not is_full:
            _overstated(placement, block, entry, collector)
        elif is_full and not marked_full and batmap is not None:
            not_in_batmap.append(block)
        if entry > last:
            _cut_off(placement, block, entry, last_set(bits), collector)
    if batmap is not None:
        _check_unallocated(placement, batmap, collector)
    if not_in_batmap:
        collector.info(
            "batmap-behind",
            f"{len(not_in_batmap)} full blocks (first: {not_in_batmap[0]}) are not in the batmap; "
            "that is legal",
        )


def _overstated(placement: Placement, block: int, entry: int, collector: Collector) -> None:
    collector.corrupt(
        "batmap-overstates",
        f"the batmap marks block {block} as full, its bitmap does not: readers that trust the "
        "batmap see stale or foreign data",
        block,
        entry * SECTOR,
        (block * placement.layout.sectors, placement.layout.sectors),
    )


def _cut_off(placement: Placement, block: int, entry: int, last: int, collector: Collector) -> None:
    """Add the finding for a block that exceeds the file; `last` is its last present sector."""
    in_file = placement.file_sectors - placement.layout.data_sector(entry)
    if last >= in_file:
        collector.corrupt(
            "data-past-end",
            f"block {block} has present sectors behind the end of the file",
            block,
            placement.file_sectors * SECTOR,
            (block * placement.layout.sectors + max(in_file, 0), last + 1 - max(in_file, 0)),
        )
    else:
        collector.add(
            "block-short",
            "unclean" if collector.mode != "live" else "info",
            f"block {block} is cut off by the end of the file, behind its last present sector",
            block,
            entry * SECTOR,
        )


def _check_unallocated(placement: Placement, batmap: bytes, collector: Collector) -> None:
    sectors = placement.layout.sectors
    for first in range(0, len(placement.bat), 8):
        byte = batmap[first >> 3]
        if not byte:
            continue
        for block in range(first, min(first + 8, len(placement.bat))):
            if placement.bat[block] == UNUSED and bit(batmap, block):
                collector.corrupt(
                    "batmap-unallocated",
                    f"the batmap marks block {block} as full, but it is not allocated",
                    block,
                    placement.bat_offset + 4 * block,
                    (block * sectors, sectors),
                )
