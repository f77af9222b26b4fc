"""Opening a damaged image with less than other readers demand, and a list of what to doubt."""

import os
from array import array
from dataclasses import replace

from vhdtool.errors import CorruptImage, VhdtoolError
from vhdtool.image.chain.layers import Layer
from vhdtool.image.chain.locate_parent import find_parent
from vhdtool.image.check.image import check
from vhdtool.image.journal.transaction import restored_storage
from vhdtool.image.journal.undo import ForeignJournal
from vhdtool.image.metadata.ends import HEADER_OFFSET, Ends, read_ends
from vhdtool.image.metadata.orphans import Orphan
from vhdtool.image.metadata.read import Metadata
from vhdtool.image.salvage.reader import DoubtfulLayer, LocatedOrphan, Salvage
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.bat import unpack_bat
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, DYNAMIC, FIXED, Footer
from vhdtool.vhd.header import NO_UUID, Header
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.units import MAX_ENTRIES, MAX_SIZE, SECTOR

_FINDINGS = 200_000
_UNREADABLE = {"bat-past-end", "bat-wraps", "data-past-end", "batmap-overstates"}
"""What a reader meets by itself, or need not believe."""


def open_salvage(path: str | os.PathLike[str]) -> Salvage:
    """Opens an image that other readers may refuse, with the parents that can be found.

    Raises NotAVhd, StorageError, or CorruptImage when nothing says where the blocks are.
    """
    layers: list[DoubtfulLayer] = []
    notes: list[str] = []
    located: list[LocatedOrphan] = []
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
                missing = f"{current}: the chain of parents comes back to this file"
                break
            seen.add((status.st_dev, status.st_ino))
            if raw:
                break
            storage = _as_before(file, notes)
            metadata = _metadata(storage, notes)
            layers[-1], orphans = _doubted(storage, metadata, notes)
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
        # What the image itself has is worth more than a parent that cannot be used.
        if len(layers) < 2:
            for one in layers:
                one.layer.close()
            raise
        layers.pop().layer.close()
        missing = str(error)
    return Salvage(layers, missing, notes, located)


def _as_before(file: FileStorage, notes: list[str]) -> Storage:
    try:
        return restored_storage(file)
    except ForeignJournal as error:
        notes.append(str(error))
        return file


def _metadata(storage: Storage, notes: list[str]) -> Metadata:
    """As `read_metadata`, but content with less."""
    ends = read_ends(storage)
    footer = ends.best or ends.agreed
    if footer is None and ends.end is not None and ends.end.disk_type == FIXED:
        # Nothing but the footer says where a fixed disk ends, and the file's end is near it.
        notes.append(f"{storage.name}: its footer is damaged; all before it is taken for the disk")
        footer = replace(ends.end, current_size=ends.end_offset)
    if footer is not None and footer.disk_type == FIXED:
        if footer.current_size > max(ends.end_offset, MAX_SIZE):
            notes.append(f"{storage.name}: its size is impossible; all before the footer is taken")
            footer = replace(footer, current_size=ends.end_offset)
        return Metadata(footer, ends)
    header = _header(storage, footer or ends.end or ends.copy, notes)
    most = max(header.max_entries * header.block_bytes, MAX_SIZE)
    if footer is None or not 0 < footer.current_size <= most:
        notes.append(f"{storage.name}: no footer is whole; the size is what the header allows")
        footer = _footer(ends, header)
    raw = storage.pread(header.bat_offset, 4 * header.max_entries)
    # Entries that the file does not have are zero, which no block can be at.
    bat: array[int] = unpack_bat(raw.ljust(4 * header.max_entries, b"\0"), header.max_entries)
    return Metadata(footer, ends, header, bat, None, BlockLayout(header.block_bytes))


def _header(storage: Storage, footer: Footer | None, notes: list[str]) -> Header:
    places = [HEADER_OFFSET] if footer is None else [footer.data_offset, HEADER_OFFSET]
    found = None
    for place in places:
        raw = storage.pread(place, HEADER_SIZE) if place < storage.size() else b""
        if len(raw) < HEADER_SIZE:
            continue
        header = Header.unpack(raw)
        fits = header.bat_offset % SECTOR == 0 and header.bat_offset < storage.size()
        usable = header.has_cookie and header.block_size_valid and fits
        if usable and header.max_entries <= MAX_ENTRIES and (found is None or header.valid):
            found = header
    if found is None:
        raise CorruptImage(
            f"{storage.name}: nothing is left that says where its blocks are: no header"
        )
    if not found.checksum_valid:
        notes.append(f"{storage.name}: the header's checksum is wrong; all data is in doubt")
    return found


def _footer(ends: Ends, header: Header) -> Footer:
    most = header.max_entries * header.block_bytes
    hints = [one.current_size for one in (ends.end, ends.copy) if one is not None]
    size = next((hint for hint in hints if 0 < hint <= most), most)
    is_child = header.parent_uuid != NO_UUID or any(one.used for one in header.locators)
    return Footer(size, DIFFERENCING if is_child else DYNAMIC)


def _doubted(
    storage: Storage, metadata: Metadata, notes: list[str]
) -> tuple[DoubtfulLayer, list[Orphan]]:
    report = check(storage, "unclean", limit=_FINDINGS)
    doubts = []
    for one in report.findings:
        if one.severity != "corrupt" or one.code == "batmap-overstates":
            # Where batmap and bitmap disagree the bitmap is believed.
            continue
        if one.sectors is None:
            notes.append(f"{storage.name}: {one.message}")
            continue
        first, count = one.sectors
        doubts.append((first * SECTOR, (first + count) * SECTOR, f"{one.code}: {one.message}"))
    if report.truncated - _UNREADABLE:
        text = f"more than {_FINDINGS} findings of one kind: nothing can be told apart"
        doubts.append((0, metadata.size, f"{min(report.truncated - _UNREADABLE)}: {text}"))
    layout = metadata.layout
    if layout is not None and len(metadata.bat) * layout.block_bytes < metadata.size:
        reach = len(metadata.bat) * layout.block_bytes
        doubts.append((reach, metadata.size, "bat-too-small: the BAT does not reach so far"))
    return DoubtfulLayer(Layer(storage, metadata), _disjoint(doubts)), report.orphans


def _disjoint(doubts: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    result: list[tuple[int, int, str]] = []
    for first, stop, why in sorted(doubts):
        start = max(first, result[-1][1]) if result else first
        if start < stop:
            result.append((start, stop, why))
    return result
