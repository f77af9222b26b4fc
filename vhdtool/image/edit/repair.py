"""Repairing metadata without touching guest data: footers, sizes, batmap, leaked tail."""

import os
from array import array
from dataclasses import dataclass, field, replace

from vhdtool.errors import CorruptImage, ImageExists, UnsupportedImage
from vhdtool.image.check.advice import BATMAP_CODES, REPAIRABLE_DAMAGE
from vhdtool.image.check.image import check
from vhdtool.image.check.regions import locator_fault
from vhdtool.image.create.empty import WITHOUT_BATMAP
from vhdtool.image.journal.undo import Change, apply, repair_journal_path, write_journal
from vhdtool.image.metadata.bounds import end_of_data, locator_ranges
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.image.metadata.findings import CheckReport, Finding
from vhdtool.image.metadata.orphans import Orphan
from vhdtool.image.metadata.read import Metadata, metadata_with
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import (
    BatmapHeader,
    batmap_checksum,
    batmap_expected,
    batmap_header_for,
)
from vhdtool.vhd.bits import all_set, set_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.creators import QEMU, QEMU_BY_SIZE, readers_agree
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import Header, Locator
from vhdtool.vhd.units import SECTOR, UNUSED


@dataclass(slots=True)
class Plan:
    """The changes of a repair, in order, and the report of the check before it."""

    report: CheckReport
    changes: list[Change] = field(default_factory=list)
    drop_orphans: bool = False

    @property
    def unrepairable(self) -> list[Finding]:
        """Damage of guest data, or of metadata without another copy."""
        repairable = set(REPAIRABLE_DAMAGE)
        if self.report.orphans and not self.drop_orphans:
            # The batmap proves that one of the orphans is a loss, and may show its number.
            repairable.discard("batmap-unallocated")
        return [
            one
            for one in self.report.findings
            if one.severity == "corrupt" and one.code not in repairable
        ]


def plan(storage: Storage, drop_orphans: bool = False) -> Plan:
    """Check an image and plan its repair; writes nothing.

    The plan is empty where there is damage that a repair cannot remove: such an image has to be
    copied first. Orphan blocks stay unless `drop_orphans`. Raises NotAVhd, or StorageError.
    """
    result = Plan(check(storage, "strict"), drop_orphans=drop_orphans)
    if result.unrepairable or (result.report.exit_code == 0 and not drop_orphans):
        return result
    codes = {one.code for one in result.report.findings}
    try:
        ends = read_ends(storage)
        footer = ends.agreed if "footers-stale" in codes else ends.best
        if footer is None:
            return result
        meta = metadata_with(storage, ends, footer)
    except CorruptImage:
        return result
    meta.footer = _with_sound_sizes(meta.footer, codes)
    if meta.header is None:
        result.changes = _fixed(storage, meta)
    else:
        orphans = result.report.orphans
        dynamic = _Dynamic(storage, meta, meta.header, codes, [] if drop_orphans else orphans)
        result.changes = (_clear_bitmaps(orphans) if drop_orphans else []) + dynamic.changes()
    return result


def _with_sound_sizes(footer: Footer, codes: set[str]) -> Footer:
    """Fix a geometry that contradicts the size field, and a QEMU image with two sizes."""
    if "geometry" in codes:
        footer = replace(footer, geometry=Geometry.for_size(footer.current_size))
    # If there is data behind the size, the size field is the wrong one: only the user can decide.
    if footer.creator == QEMU and not readers_agree(footer) and "block-beyond-size" not in codes:
        footer = replace(footer, creator=QEMU_BY_SIZE)
    return footer


def _fixed(storage: Storage, meta: Metadata) -> list[Change]:
    size, ends = meta.size, meta.ends
    raw = meta.footer.pack()
    if storage.is_block_device:
        # On a device the footer is at the end of the device, wherever the disk ends.
        size = ends.file_size - SECTOR
    changes = []
    if storage.pread(size, SECTOR) != raw:
        changes.append(Change("write the footer behind the data", size, raw))
    if ends.file_size > size + SECTOR:
        changes.append(Change("cut the file behind it", size + SECTOR))
    return changes


def _clear_bitmaps(orphans: list[Orphan]) -> list[Change]:
    """Changes that turn orphan blocks into leaked space: their bitmaps are cleared."""
    return [
        Change(
            "clear the bitmap of a block that no BAT entry names",
            one.entry * SECTOR,
            bytes(one.layout.bitmap_sectors * SECTOR),
        )
        for one in orphans
    ]


class _Dynamic:
    """The repair of one dynamic or differencing image; `orphans` are not overwritten."""

    def __init__(
        self,
        storage: Storage,
        meta: Metadata,
        header: Header,
        codes: set[str],
        orphans: list[Orphan],
    ) -> None:
        self.storage = storage
        self.header = header
        self.bat: array[int] = meta.bat
        self.ends: Ends = meta.ends
        self.footer = meta.footer
        self.batmap = meta.batmap
        self.codes = codes
        self.orphans = orphans

    def changes(self) -> list[Change]:
        result = self._locator_changes() + self._batmap_changes()
        end = end_of_data(self.footer, self.header, self.batmap, self.bat)
        end = max([end, *(one.end for one in self.orphans)]) * SECTOR
        size = self.ends.file_size
        if self.storage.is_block_device:
            end = size - SECTOR
        raw = self.footer.pack()
        copy = self.storage.pread(0, SECTOR)
        if "block-short" in self.codes and size < end:
            result.append(Change("extend the file to the end of the last block", end))
        if copy != raw:
            result.append(Change("write the footer's copy at the start", 0, raw))
        in_place = self.ends.footer is not None and self.ends.footer_offset == end
        if not in_place or self.storage.pread(end, SECTOR) != raw:
            result.append(Change("write the footer behind the last block", end, raw))
        if size > end + SECTOR:
            result.append(Change("cut the leaked space behind the footer", end + SECTOR))
        return result

    def _locator_changes(self) -> list[Change]:
        """Remove locators with a fault; the parent's name in the header stays."""
        if "locator" not in self.codes:
            return []
        table = tuple(
            Locator() if one.used and locator_fault(one, self.ends.file_size) is not None else one
            for one in self.header.locators
        )
        self.header = replace(self.header, locators=table)
        text = "remove a parent locator that points nowhere"
        return [Change(text, self.footer.data_offset, self.header.pack())]

    def _batmap_changes(self) -> list[Change]:
        """Rebuild the batmap from the bitmaps, or give it up where a block overlaps it."""
        if not self.codes & BATMAP_CODES:
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
        """Whether sectors [first, end) overlap no block, no orphan and no locator."""
        total = BlockLayout(self.header.block_bytes).total_sectors
        if any(one.entry < end and one.end > first for one in self.orphans):
            return False
        if any(e != UNUSED and e < end and e + total > first for e in self.bat):
            return False
        return all(
            offset // SECTOR >= end or (offset + size) // SECTOR <= first
            for offset, size in locator_ranges(self.footer, self.header)
        )


def write_repair(
    storage: Storage, changes: list[Change], journal: str | os.PathLike[str] | None = None
) -> str:
    """Write the changes of a repair; return the path of its undo journal, which is written first.

    Raises ImageExists for the undo journal of an earlier repair, or StorageError.
    """
    path = os.fspath(journal) if journal is not None else repair_journal_path(storage.name)
    if os.path.isfile(path):
        raise ImageExists(
            f"{path}: is the undo journal of an earlier repair; move it, or choose another path "
            "with --journal"
        )
    write_journal(path, storage, changes)
    apply(storage, changes)
    return path


def require_repairable(result: Plan) -> None:
    """Raise UnsupportedImage when there is damage that a repair cannot remove."""
    if result.unrepairable:
        first = result.unrepairable[0]
        raise UnsupportedImage(
            f"{result.report.name}: cannot be repaired ({first.code}: {first.message}); nothing "
            "was written; `vhdtool check` says what helps"
        )
