"""Opening a damaged image that other readers refuse, with the ranges that cannot be trusted."""

import os
from array import array
from dataclasses import replace

from vhdtool.errors import CorruptImage, VhdtoolError
from vhdtool.image.chain.layers import Layer
from vhdtool.image.chain.locate_parent import find_parent
from vhdtool.image.check.image import check
from vhdtool.image.check.lost_header import headers_by_pattern, rebuild_header
from vhdtool.image.journal.overlay import OverlayStorage
from vhdtool.image.journal.transaction import restored_storage
from vhdtool.image.journal.undo import ForeignJournal
from vhdtool.image.metadata.ends import HEADER_OFFSET, Ends, read_ends
from vhdtool.image.metadata.orphans import Orphan
from vhdtool.image.metadata.read import Metadata
from vhdtool.image.salvage.blocks import Doubt, WithoutBat, leads_to, place
from vhdtool.image.salvage.reader import DoubtfulLayer, LocatedOrphan, Salvage
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, DYNAMIC, FIXED, Footer
from vhdtool.vhd.header import NO_UUID, Header
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.units import MAX_ENTRIES, MAX_SIZE, SECTOR, size_text

MOST_FINDINGS = 200_000
BAT_LOST = "its header and its BAT are lost"
SIZE_UNKNOWN = "its header is lost, and nothing shows the size of its blocks"
_FOUND_BY_READERS = {"bat-past-end", "bat-wraps", "data-past-end", "batmap-overstates"}
"""Codes that need no complete list: reading fails there, or does not use the damaged value."""


def open_salvage(path: str | os.PathLike[str], place_orphans: bool = False) -> Salvage:
    """Open an image that other readers may refuse, with the parents that can be found.

    A lost header is replaced in memory where the rest of the image proves it; without a BAT, blocks
    are found by their pattern. With `place_orphans` orphan blocks are read at the positions for
    which there is evidence, which is a guess. Raises NotAVhd, StorageError, or CorruptImage when
    the blocks of the image cannot be located.
    """
    layers: list[DoubtfulLayer] = []
    notes: list[str] = []
    located: list[LocatedOrphan] = []
    placed: list[LocatedOrphan] = []
    missing: str | None = None
    current, raw = os.fspath(path), False
    seen = set()
    try:
        while True:
            file = FileStorage(current)
            layers.append(DoubtfulLayer(Layer(file)))
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) in seen:
                layers.pop().layer.close()
                missing = f"{current}: the chain of parents returns to this file"
                break
            seen.add((status.st_dev, status.st_ino))
            if raw:
                break
            storage = _restored(file, notes)
            storage, metadata = _metadata(storage, notes)
            layers[-1], orphans = _doubtful(storage, metadata, notes)
            if place_orphans and metadata.header is not None:
                layers[-1].doubts, found, orphans = place(storage, metadata, layers[-1].doubts)
                placed += [LocatedOrphan(storage, one) for one in found]
            located += [LocatedOrphan(storage, one) for one in orphans]
            header = metadata.header
            if metadata.footer.disk_type != DIFFERENCING or header is None:
                break
            try:
                current = find_parent(current, storage, header)
            except VhdtoolError as error:
                missing = str(error)
                break
            raw = header.parent_uuid == NO_UUID
    except VhdtoolError as error:
        # The image's own data can be salvaged without a parent that cannot be used.
        if len(layers) < 2:
            for one in layers:
                one.layer.close()
            raise
        layers.pop().layer.close()
        missing = str(error)
    return Salvage(layers, missing, notes, located, placed)


def _restored(file: FileStorage, notes: list[str]) -> Storage:
    try:
        return restored_storage(file)
    except ForeignJournal as error:
        notes.append(str(error))
        return file


def _metadata(storage: Storage, notes: list[str]) -> tuple[Storage, Metadata]:
    """Read the metadata as `read_metadata` does, without requiring a valid footer.

    Returns the storage to be used with it: a view, where the header was replaced.
    """
    ends = read_ends(storage)
    footer = ends.best or ends.agreed
    if footer is None and ends.footer is not None and ends.footer.disk_type == FIXED:
        # Only the footer has the size of a fixed disk, and it directly follows the data.
        notes.append(f"{storage.name}: its footer is damaged; the disk is all data before it")
        footer = replace(ends.footer, current_size=ends.footer_offset)
    if footer is not None and footer.disk_type == FIXED:
        if footer.current_size > max(ends.footer_offset, MAX_SIZE):
            text = "its size is impossible; the disk is all data before the footer"
            notes.append(f"{storage.name}: {text}")
            footer = replace(footer, current_size=ends.footer_offset)
        return storage, Metadata(footer, ends)
    header = _header(storage, footer or ends.footer or ends.copy, notes)
    if header is None:
        storage, header = _without_header(storage, footer, ends, notes)
    most = max(header.max_entries * header.block_bytes, MAX_SIZE)
    if footer is None or not 0 < footer.current_size <= most:
        notes.append(f"{storage.name}: no footer is valid; the size is the largest of the header")
        footer = _footer(ends, header)
    raw = storage.pread(header.bat_offset, 4 * header.max_entries)
    # Entries behind the end of the file become zero, which no block can have.
    bat: array[int] = unpack_bat(raw.ljust(4 * header.max_entries, b"\0"), header.max_entries)
    return storage, Metadata(footer, ends, header, bat, None, BlockLayout(header.block_bytes))


def _without_header(
    storage: Storage, footer: Footer | None, ends: Ends, notes: list[str]
) -> tuple[Storage, Header]:
    """A view of an image without a usable header, with one that the rest of the image shows."""
    try:
        rebuilt = rebuild_header(storage)
    except CorruptImage as error:
        found = [] if footer is None else headers_by_pattern(storage, footer, ends)
        if not found:
            raise CorruptImage(
                f"{error}; and no block can be recognized, so nothing can be copied: restore the "
                "image from a backup"
            ) from None
        fits = [_fit(storage, *one) for one in found]
        best = [one for one, fit in zip(found, fits, strict=True) if fit == max(fits)]
        header, blocks = best[0]
        if len(best) > 1:
            sizes = " or ".join(size_text(one.block_bytes) for one, _ in best)
            notes.append(
                f"{storage.name}: its header is lost and its blocks could be of {sizes}: nothing "
                "shows which, so its BAT is not used; the first is taken, which is a guess"
            )
            return WithoutBat(storage, header, SIZE_UNKNOWN), header
        if hits := leads_to(storage, header, blocks):
            notes.append(
                f"{storage.name}: its header is lost and its BAT damaged; {hits} of {len(blocks)} "
                f"blocks that were recognized are named by the BAT at byte {header.bat_offset}"
            )
            return _with_header(storage, header), header
        notes.append(
            f"{storage.name}: {BAT_LOST}; its blocks of {size_text(header.block_bytes)} were "
            "recognized by their pattern, and which block of the disk each one is, is not known"
        )
        return WithoutBat(storage, header, BAT_LOST), header
    notes.append(
        f"{storage.name}: its header is lost; the rest of the image proves it: {rebuilt}; "
        "`vhdtool repair --rebuild-header` can write it"
    )
    return rebuilt.view(storage), rebuilt.header


def _with_header(storage: Storage, header: Header) -> Storage:
    return OverlayStorage(storage, [(HEADER_OFFSET, header.pack())])


def _fit(storage: Storage, header: Header, blocks: list[Orphan]) -> tuple[int, int]:
    """How well a header found by pattern fits the BAT that may be left; the larger, the better."""
    report = check(_with_header(storage, header), "unclean", bitmaps=False)
    return leads_to(storage, header, blocks), -sum(f.severity == "corrupt" for f in report.findings)


def _header(storage: Storage, footer: Footer | None, notes: list[str]) -> Header | None:
    offsets = [HEADER_OFFSET] if footer is None else [footer.data_offset, HEADER_OFFSET]
    best = None
    for offset in offsets:
        raw = storage.pread(offset, HEADER_SIZE) if offset < storage.size() else b""
        if len(raw) < HEADER_SIZE:
            continue
        header = Header.unpack(raw)
        fits = header.bat_offset % SECTOR == 0 and header.bat_offset < storage.size()
        usable = header.has_cookie and header.block_size_valid and fits
        if usable and header.max_entries <= MAX_ENTRIES and (best is None or header.valid):
            best = header
    if best is not None and not best.checksum_valid:
        notes.append(f"{storage.name}: the header's checksum is wrong; all data is in doubt")
    return best


def _footer(ends: Ends, header: Header) -> Footer:
    most = header.max_entries * header.block_bytes
    hints = [one.current_size for one in (ends.footer, ends.copy) if one is not None]
    size = next((hint for hint in hints if 0 < hint <= most), most)
    is_child = header.parent_uuid != NO_UUID or any(one.used for one in header.locators)
    return Footer(size, DIFFERENCING if is_child else DYNAMIC)


def _doubtful(
    storage: Storage, metadata: Metadata, notes: list[str]
) -> tuple[DoubtfulLayer, list[Orphan]]:
    """The layer with the ranges of all corrupt findings, and its orphan blocks."""
    report = check(storage, "unclean", limit=MOST_FINDINGS)
    doubts: list[Doubt] = []
    if isinstance(storage, WithoutBat):
        doubts.append((0, metadata.size, f"bat-lost: {storage.reason}"))
    for one in report.findings:
        if one.severity != "corrupt" or one.code == "batmap-overstates":
            # Where batmap and bitmap disagree the bitmap is used.
            continue
        if one.sectors is None:
            notes.append(f"{storage.name}: {one.message}")
            continue
        first, count = one.sectors
        doubts.append((first * SECTOR, (first + count) * SECTOR, f"{one.code}: {one.message}"))
    if report.truncated - _FOUND_BY_READERS:
        text = f"more than {MOST_FINDINGS} findings of one code, so no range can be trusted"
        doubts.append((0, metadata.size, f"{min(report.truncated - _FOUND_BY_READERS)}: {text}"))
    layout = metadata.layout
    if layout is not None and len(metadata.bat) * layout.block_bytes < metadata.size:
        reach = len(metadata.bat) * layout.block_bytes
        doubts.append((reach, metadata.size, "bat-too-small: the BAT has no entries for it"))
    return DoubtfulLayer(Layer(storage, metadata), _disjoint(doubts)), report.orphans


def _disjoint(doubts: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    result: list[tuple[int, int, str]] = []
    for first, stop, reason in sorted(doubts):
        start = max(first, result[-1][1]) if result else first
        if start < stop:
            result.append((start, stop, reason))
    return result
