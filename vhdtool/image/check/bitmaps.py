"""Bitmaps and batmap: what is present, do both say the same, and is it in the file?"""

from vhdtool.image.metadata.collector import Collector
from vhdtool.image.metadata.placement import Placement
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
    found: Collector,
) -> bytes | None:
    """Judges the batmap; returns its bits, or None when there is none to be trusted."""
    at = header.bat_end
    if batmap is None:
        if batmap_expected(footer):
            found.unclean(
                "batmap-missing",
                "the batmap that this creator's version promises is not there; "
                "the real tapdisk refuses the image until `vhdtool repair`",
                at,
            )
        return None
    if batmap.version > VERSION:
        found.info("batmap-version", f"batmap version 0x{batmap.version:08x} is too new", at)
    bits = read_batmap(storage, batmap, header)
    if bits is None or batmap.offset % SECTOR:
        found.unclean(
            "batmap-place",
            f"a batmap of {batmap.sectors} sectors at byte {batmap.offset} cannot be right",
            at,
        )
        return None
    if batmap_checksum(bits, footer.current_size, batmap.version) != batmap.checksum:
        found.open_end("batmap-checksum", "the batmap's checksum is wrong", at)
        return None
    return bits


def check_bitmaps(
    storage: Storage, place: Placement, batmap: bytes | None, read: bool, found: Collector
) -> None:
    """Each block's bitmap against the batmap and the end of the file.

    Without `read` only what the batmap promises is compared with the file's end.
    """
    layout = place.layout
    length, sectors = layout.bitmap_bytes, layout.sectors
    full = b"\xff" * length if sectors % 8 == 0 else b""
    last = place.file_sectors - layout.total_sectors
    behind = []
    # A million calls of place.read_bitmap would cost as much as their reads.
    pread, backwards = storage.pread, place.bitmaps_reversed
    for key in place.keys:
        entry, block = key >> 32, key & 0xFFFFFFFF
        said_full = batmap is not None and bit(batmap, block)
        if not read:
            if entry > last:
                _short(place, block, entry, sectors - 1 if said_full else -1, found)
            continue
        bits = pread(entry * SECTOR, length)
        if backwards:
            bits = reversed_bits(bits)
        is_full = bits == full or (not full and all_set(bits, sectors))
        if said_full and not is_full:
            _overstated(place, block, entry, found)
        elif is_full and not said_full and batmap is not None:
            behind.append(block)
        if entry > last:
            _short(place, block, entry, last_set(bits), found)
    if batmap is not None:
        _unallocated(place, batmap, found)
    if behind:
        found.info(
            "batmap-behind",
            f"{len(behind)} full blocks (first: {behind[0]}) are not in the batmap; that is legal",
        )


def _overstated(place: Placement, block: int, entry: int, found: Collector) -> None:
    found.corrupt(
        "batmap-overstates",
        f"the batmap calls block {block} full, its bitmap does not: stale or foreign data shows",
        block,
        entry * SECTOR,
        (block * place.layout.sectors, place.layout.sectors),
    )


def _short(place: Placement, block: int, entry: int, last: int, found: Collector) -> None:
    """A block whose end is not in the file: corrupt as soon as a present sector is missing."""
    there = place.file_sectors - place.layout.data_sector(entry)
    if last >= there:
        found.corrupt(
            "data-past-end",
            f"block {block} has present sectors behind the end of the file",
            block,
            place.file_sectors * SECTOR,
            (block * place.layout.sectors + max(there, 0), last + 1 - max(there, 0)),
        )
    else:
        found.add(
            "block-short",
            "unclean" if found.mode != "live" else "info",
            f"block {block} is cut off by the end of the file, behind its last present sector",
            block,
            entry * SECTOR,
        )


def _unallocated(place: Placement, batmap: bytes, found: Collector) -> None:
    for first in range(0, len(place.bat), 8):
        byte = batmap[first >> 3]
        if not byte:
            continue
        for block in range(first, min(first + 8, len(place.bat))):
            if place.bat[block] == UNUSED and bit(batmap, block):
                found.corrupt(
                    "batmap-unallocated",
                    f"the batmap calls block {block} full, the BAT says it is free",
                    block,
                    place.bat_offset + 4 * block,
                    (block * place.layout.sectors, place.layout.sectors),
                )
