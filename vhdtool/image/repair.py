"""Mends what can be mended without touching guest data: footers, batmap, leaked tail."""

from array import array
from dataclasses import dataclass, field, replace

from vhdtool.errors import CorruptImage, UnsupportedImage
from vhdtool.image.check import check
from vhdtool.image.create import WITHOUT_BATMAP
from vhdtool.image.findings import CheckReport, Finding
from vhdtool.image.metadata import Ends, Metadata, read_metadata
from vhdtool.image.places import end_of_data
from vhdtool.image.undo import Change
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import (
    BatmapHeader,
    batmap_checksum,
    batmap_expected,
    batmap_header_for,
)
from vhdtool.vhd.bits import all_set, set_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

MENDED = {"batmap-overstates", "batmap-unallocated"}
"""Findings of severity "corrupt" that a rebuilt batmap takes away."""
_BATMAP = {"batmap-missing", "batmap-place", "batmap-checksum", "batmap-overwritten", *MENDED}


@dataclass(slots=True)
class Plan:
    """What a repair would do, in order, and the findings that it must leave."""

    report: CheckReport
    changes: list[Change] = field(default_factory=list)

    @property
    def hopeless(self) -> list[Finding]:
        """Damage that no repair can mend, because it is in guest data or in the only copy."""
        return [
            one
            for one in self.report.findings
            if one.severity == "corrupt" and one.code not in MENDED
        ]


def plan(storage: Storage) -> Plan:
    """Looks at an image and says what a repair would write; writes nothing itself.

    Where damage is found that it cannot mend, nothing is planned at all: the first thing to do
    with such an image is to copy it. Raises NotAVhd, or StorageError.
    """
    result = Plan(check(storage, "strict"))
    if result.hopeless:
        return result
    try:
        meta = read_metadata(storage)
    except CorruptImage:
        return result
    codes = {one.code for one in result.report.findings}
    if meta.header is None:
        result.changes = _fixed(meta)
    else:
        result.changes = _Dynamic(storage, meta, meta.header, codes).changes()
    return result


def _fixed(meta: Metadata) -> list[Change]:
    size, ends = meta.size, meta.ends
    raw = meta.footer.pack()
    end = ends.end
    if ends.file_size == size + SECTOR and end is not None and end.valid:
        return []
    changes = [Change("write the footer behind the data", size, raw)]
    if ends.file_size > size + SECTOR:
        changes.append(Change("cut what is behind it", size + SECTOR))
    return changes


class _Dynamic:
    """The repair of one dynamic or differencing image."""

    def __init__(self, storage: Storage, meta: Metadata, header: Header, codes: set[str]) -> None:
        self.storage = storage
        self.header = header
        self.bat: array[int] = meta.bat
        self.ends: Ends = meta.ends
        self.footer = meta.footer
        self.batmap = meta.batmap
        self.codes = codes

    def changes(self) -> list[Change]:
        result = self._batmap_changes()
        end = end_of_data(self.footer, self.header, self.batmap, self.bat) * SECTOR
        size = self.ends.file_size
        if getattr(self.storage, "is_block_device", False):
            end = size - SECTOR
        raw = self.footer.pack()
        copy = self.storage.pread(0, SECTOR)
        if "block-short" in self.codes and size < end:
            result.append(Change("give the last block its full length", end))
        if copy != raw:
            result.append(Change("write the footer's copy at the start", 0, raw))
        in_place = self.ends.end is not None and self.ends.end_offset == end
        if not in_place or self.storage.pread(end, SECTOR) != raw:
            result.append(Change("write the footer behind the last block", end, raw))
        if size > end + SECTOR:
            result.append(Change("cut the leaked space behind the footer", end + SECTOR))
        return result

    def _batmap_changes(self) -> list[Change]:
        """Rebuilds the batmap from the bitmaps, or gives it up where a block took its place."""
        if not self.codes & _BATMAP:
            return []
        fresh = batmap_header_for(self.header)
        if self.batmap is not None and "batmap-place" not in self.codes:
            fresh = replace(
                self.batmap, sectors=max(self.batmap.sectors, fresh.sectors), version=fresh.version
            )
        if not self._free(self.header.bat_end // SECTOR, self.header.bat_end // SECTOR + 1) or (
            not self._free(fresh.offset // SECTOR, fresh.offset // SECTOR + fresh.sectors)
        ):
            if batmap_expected(self.footer):
                self.footer = replace(self.footer, creator_version=WITHOUT_BATMAP)
            self.batmap = None
            return []
        self.batmap = fresh
        return self._rebuilt(fresh)

    def _rebuilt(self, fresh: BatmapHeader) -> list[Change]:
        layout = BlockLayout(self.header.block_bytes)
        bits = bytearray(fresh.sectors * SECTOR)
        for block, entry in enumerate(self.bat):
            if entry != UNUSED:
                raw = self.storage.pread(entry * SECTOR, layout.bitmap_bytes)
                if len(raw) == layout.bitmap_bytes and all_set(raw, layout.sectors):
                    set_bits(bits, block, 1)
        value = batmap_checksum(bytes(bits), self.footer.current_size, fresh.version)
        head = replace(fresh, checksum=value)
        return [
            Change("rebuild the batmap from the bitmaps", fresh.offset, bytes(bits)),
            Change("write the batmap's header", self.header.bat_end, head.pack()),
        ]

    def _free(self, first: int, end: int) -> bool:
        """Whether sectors [first, end) belong to no block and no locator."""
        total = BlockLayout(self.header.block_bytes).total_sectors
        if any(e != UNUSED and e < end and e + total > first for e in self.bat):
            return False
        return all(
            not one.used
            or one.room is None
            or one.offset // SECTOR >= end
            or (one.offset + one.room) // SECTOR <= first
            for one in self.header.locators
        )


def require_repairable(result: Plan) -> None:
    """Raises UnsupportedImage when there is damage that a repair cannot mend."""
    if result.hopeless:
        first = result.hopeless[0]
        raise UnsupportedImage(
            f"{result.report.name}: cannot be repaired ({first.code}: {first.message}); nothing "
            "was written; copy what can be trusted with `vhdtool read --salvage`"
        )
