"""A lost header, rebuilt from what footer, BAT, batmap and blocks prove.

The footer has the size of the disk. A candidate is a block size together with a position at which
every entry of a BAT for that size is possible. Each candidate becomes a header in a view of the
image, and the check of that view decides: it must find no damage, and nothing may be left over.
"""

from dataclasses import dataclass, replace
from itertools import islice

from vhdtool.errors import CorruptImage
from vhdtool.image.check.bat_search import BLOCK_SIZES, possible_tables
from vhdtool.image.check.image import check
from vhdtool.image.journal.overlay import OverlayStorage
from vhdtool.image.metadata.ends import HEADER_OFFSET, Ends, read_ends
from vhdtool.image.metadata.findings import CheckReport
from vhdtool.image.metadata.orphans import Orphan, find_orphans
from vhdtool.image.metadata.placement import Placement
from vhdtool.image.metadata.read import read_batmap_header
from vhdtool.storage import Storage
from vhdtool.vhd.bat import empty_bat, unpack_bat
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, FIXED, Footer
from vhdtool.vhd.header import COOKIE, SIZE, VERSION, Header
from vhdtool.vhd.units import (
    MAX_ENTRIES,
    NO_OFFSET,
    SECTOR,
    size_text,
)

_MOST_CANDIDATES = 8
_LEFT_OVER = frozenset({"orphan-block", "leaked-block", "leaked-tail"})
"""Codes of blocks and space that the BAT should name: then the table may be another one."""


@dataclass(frozen=True, slots=True)
class RebuiltHeader:
    """A header for byte `offset`, what proves it, and the check of the image with it."""

    header: Header
    offset: int
    evidence: list[str]
    report: CheckReport
    proved: bool = False
    """The old checksum fits, and proves every field."""
    needs_parent: bool = False
    """The image is a child, and nothing in it says of which parent."""
    exact: bool = True
    """The table has as many entries as the disk needs, and no more."""

    @property
    def sound(self) -> bool:
        """Whether the image has no damage with this header, and nothing is left over."""
        codes = {one.code for one in self.report.findings}
        # Nothing names the locators of a child any more; in one without a block they are its tail.
        left_over = _LEFT_OVER - {"leaked-tail"} if self.needs_parent else _LEFT_OVER
        return self.report.exit_code != 2 and (self.proved or not codes & left_over)

    def __str__(self) -> str:
        header = self.header
        return (
            f"BAT at byte {header.bat_offset} with {header.max_entries} entries, blocks of "
            f"{size_text(header.block_bytes)}"
        )

    def view(self, storage: Storage) -> Storage:
        """The image with this header."""
        return OverlayStorage(storage, [(self.offset, self.header.pack())])


def rebuild_header(storage: Storage, parent_fields: Header | None = None) -> RebuiltHeader:
    """Find the header that the rest of a dynamic image proves; writes nothing.

    `parent_fields` has the parent of a child whose own fields are lost. Raises NotAVhd, or
    CorruptImage where no header is proved, or more than one is possible.
    """
    ends = read_ends(storage)
    footer = ends.best or ends.agreed
    if footer is None:
        raise _lost(storage, "no footer is valid, so the size of the disk is unknown")
    if footer.disk_type == FIXED:
        raise _lost(storage, "a fixed image has no header")
    offset = footer.data_offset
    if offset % SECTOR or not SECTOR <= offset <= ends.file_size - SIZE:
        offset = HEADER_OFFSET
    old = Header.unpack(storage.pread(offset, SIZE).ljust(SIZE, b"\0"))
    found = list(possible_tables(storage, footer, old, offset, ends.file_size))
    candidates = [header for header, goes_on in found if not goes_on]
    if found and not candidates:
        raise _lost(storage, _too_short(min(header.block_bytes for header, _ in found)))
    return _the_best(
        storage,
        footer,
        ends,
        [
            _tried(storage, footer, old, offset, one, parent_fields)
            for one in islice(candidates, _MOST_CANDIDATES)
        ],
    )


def _tried(
    storage: Storage,
    footer: Footer,
    old: Header,
    offset: int,
    header: Header,
    parent_fields: Header | None,
) -> RebuiltHeader:
    """Check the image with a candidate."""
    is_child = footer.disk_type == DIFFERENCING
    exact = header.max_entries == -(-footer.current_size // header.block_bytes)
    header, proved = _with_parent_fields(header, old, parent_fields if is_child else None)
    view = OverlayStorage(storage, [(offset, header.pack())])
    return RebuiltHeader(
        header, offset, _evidence(header, proved, exact), check(view), proved,
        is_child and not proved, exact,
    )  # fmt: skip


def _too_short(block_bytes: int) -> str:
    """Why there is no candidate where the table goes on behind the one for these blocks."""
    sizes = " or ".join(size_text(one) for one in sorted(BLOCK_SIZES) if one <= block_bytes)
    return (
        f"blocks of {sizes} are possible: the table goes on behind its end for the largest of "
        "them, and has impossible entries for any smaller one"
    )


def _lost(storage: Storage, reason: str) -> CorruptImage:
    return CorruptImage(f"{storage.name}: its header cannot be rebuilt: {reason}")


def _with_parent_fields(
    header: Header, old: Header, parent_fields: Header | None
) -> tuple[Header, bool]:
    """The candidate with the fields that it does not say itself, and whether they are proved."""
    repaired = replace(
        old,
        cookie=COOKIE,
        next_offset=NO_OFFSET,
        version=VERSION,
        max_entries=header.max_entries,
        block_bytes=header.block_bytes,
        bat_offset=header.bat_offset,
    )
    if repaired.checksum_valid and old.checksum:
        return repaired, True
    if parent_fields is None:
        return header, False
    return replace(
        header,
        parent_uuid=parent_fields.parent_uuid,
        parent_timestamp=parent_fields.parent_timestamp,
        parent_name=parent_fields.parent_name,
    ), False


def _evidence(header: Header, proved: bool, exact: bool) -> list[str]:
    number = "as many as the disk needs" if exact else "more than the disk needs, up to its batmap"
    lines = [
        f"the table at byte {header.bat_offset} has {header.max_entries} possible entries, "
        f"{number} with blocks of {size_text(header.block_bytes)}"
    ]
    if proved:
        lines.append("the checksum that is left of the old header fits, its other fields included")
    return lines


def _confirmed(
    storage: Storage, footer: Footer, ends: Ends, found: list[RebuiltHeader]
) -> list[RebuiltHeader]:
    """The candidates whose block size is that of the blocks in the file, whatever a table says.

    Two blocks that follow one another could pass for one of twice the size. Raises CorruptImage.
    """
    seen = headers_by_pattern(storage, footer, ends)
    sizes = [header.block_bytes for header, _ in seen]
    if len(sizes) == 1 and (right := [one for one in found if one.header.block_bytes == sizes[0]]):
        named = [one for one in right if _names(storage, one.header, seen[0][1])]
        if not named:
            raise _lost(storage, "blocks seem to begin where no entry of a table points")
        return named
    if sizes:
        text = " or ".join(str(size) for size in sizes)
        tables = " or ".join(size_text(one.header.block_bytes) for one in found)
        raise _lost(
            storage,
            f"its blocks look as if they had {text} bytes, its table is one for blocks of {tables}",
        )
    # Without data in a block only a batmap shows where the table ends.
    if right := [one for one in found if read_batmap_header(storage, one.header) is not None]:
        return right
    raise _lost(storage, "no block has data, so there is neither proof nor anything to be rescued")


def _names(storage: Storage, header: Header, blocks: list[Orphan]) -> bool:
    """Whether the table names each block that was recognized.

    A remainder of a longer table can pass for the bitmap of a block; behind a batmap there is none.
    """
    if read_batmap_header(storage, header) is not None:
        return True
    bat = unpack_bat(storage.pread(header.bat_offset, header.bat_bytes), header.max_entries)
    return {one.entry for one in blocks} <= set(bat)


def _the_best(
    storage: Storage, footer: Footer, ends: Ends, tried: list[RebuiltHeader]
) -> RebuiltHeader:
    """The only sound candidate of the best evidence. Raises CorruptImage."""
    if not tried:
        raise _lost(storage, "no table in the file can be its BAT")
    sound = [one for one in tried if one.sound]
    if not sound:
        raise _lost(storage, "with each table that can be its BAT, blocks are damaged or left over")
    best = [one for one in sound if one.proved] or [one for one in sound if one.exact] or sound
    if not best[0].proved:
        best = _confirmed(storage, footer, ends, best)
    if len(best) > 1:
        sizes = " or ".join(size_text(one.header.block_bytes) for one in best)
        raise _lost(storage, f"nothing shows which one is right: blocks of {sizes}")
    return best[0]


def headers_by_pattern(
    storage: Storage, footer: Footer, ends: Ends
) -> list[tuple[Header, list[Orphan]]]:
    """The headers with which most data of the file is in blocks, each with those blocks.

    None is found where no block has data. Several are found where blocks with little data could
    have more than one size, or more blocks are found with a smaller one.
    """
    known = ends.footer is not None or ends.killed
    end = (ends.footer_offset if known else ends.file_size) // SECTOR
    found: list[tuple[Header, list[Orphan]]] = []
    for block_bytes in BLOCK_SIZES:
        layout = BlockLayout(block_bytes)
        need = layout.blocks_for(footer.current_size)
        if not 0 < need <= MAX_ENTRIES:
            continue
        header = Header(need, block_bytes, HEADER_OFFSET + SIZE)
        placement = Placement(
            empty_bat(need), layout, header.bat_offset, ends.file_size, footer.bitmaps_reversed
        )
        gap = (header.bat_end // SECTOR, end)
        if blocks := find_orphans(storage, placement, [gap], None, need):
            found.append((header, blocks))
    present = [sum(block.present for block in blocks) for _, blocks in found]
    best = [one for one, number in zip(found, present, strict=True) if number == max(present)]
    # The data of a block can pass for the bitmap of a larger one that swallows the next block.
    return [
        one
        for one in found
        if one in best
        or any(
            one[0].block_bytes < header.block_bytes and len(one[1]) > len(blocks)
            for header, blocks in best
        )
    ]
