"""Changing the virtual size; shrinking requires that the data cut off is zero."""

import os
from dataclasses import replace

from vhdtool.errors import UncleanImage, UnsupportedImage, UsageError
from vhdtool.image.chain.export import pieces
from vhdtool.image.chain.layers import Reader
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.admission import writable
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import check_size
from vhdtool.image.edit.modify import footer_changes
from vhdtool.image.edit.relocate import BlockMover
from vhdtool.image.journal.transaction import apply_journalled, change_journal_path, writable_image
from vhdtool.image.journal.undo import Change, apply
from vhdtool.image.metadata.bounds import end_of_data, footer_offset, locator_ranges
from vhdtool.image.metadata.read import Metadata, believed_batmap
from vhdtool.storage import FileStorage
from vhdtool.storage.image_lock import LockMode
from vhdtool.vhd.bat import empty_bat, pack_bat
from vhdtool.vhd.batmap import batmap_checksum, batmap_expected, batmap_header_for
from vhdtool.vhd.bits import clear_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.creators import with_size
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED, pad, size_text


def resize(
    path: str | os.PathLike[str],
    size_bytes: int,
    journal: str | None = None,
    mode: LockMode = LockMode.EXCLUSIVE,
) -> Footer:
    """Change the virtual size of a closed image (rounded up to 512); returns its footer.

    All readers agree on the new size; the creator field may have to change for that (`with_size`).
    Shrinking reads the data to be cut off and refuses unless it is zero. Changes are journalled
    (at the path `journal`, or beside the image): after a crash `vhdtool repair` restores the old
    size. With LockMode.BENEATH a child may be served: then the image can only grow, within its
    tables.
    Raises UsageError, ImageInUse or ActivationRefused, CorruptImage, UncleanImage or StorageError.
    """
    size = check_size(size_bytes)
    with writable_image(path, mode) as storage:
        _require_possible(path, size, beneath=mode is LockMode.BENEATH)
        meta = writable(storage)
        footer = with_size(meta.footer, size)
        journal = journal or change_journal_path(path)
        if meta.footer.disk_type == FIXED:
            apply_journalled(storage, journal, _fixed(storage, meta, footer))
        elif meta.header is not None:
            _dynamic(storage, meta, meta.header, footer, journal)
    return footer


def _require_possible(path: str | os.PathLike[str], size: int, beneath: bool) -> None:
    """Raise UsageError when the image cannot have that size."""
    with open_chain(path) as reader:
        meta = reader.layers[0].metadata
        if beneath and meta is not None:
            header = meta.header
            largest = meta.size if header is None else header.max_entries * header.block_bytes
            if not meta.size <= size <= largest:
                raise UsageError(
                    f"{os.fspath(path)}: while a child is served, the size can only grow, up to "
                    f"{size_text(largest)}"
                )
        if reader.layers[0].size > size:
            require_zeros(reader, size)
        elif len(reader.layers) > 1 and size < reader.layers[1].size:
            raise UsageError(f"{os.fspath(path)}: a child cannot be smaller than its parent")


def require_zeros(reader: Reader, start: int) -> None:
    """Raise UsageError with the offset of the first data unless all is zero from byte `start`."""
    for piece in pieces(reader, start, reader.size):
        if piece.offset is None:
            continue
        data = reader.fetch(piece)
        if any(data):
            first = piece.start + len(data) - len(data.lstrip(b"\0"))
            raise UsageError(
                f"{reader.layers[0].name}: the data from guest byte {first} on is in use; "
                "shrink the file system first"
            )


def _fixed(storage: FileStorage, meta: Metadata, footer: Footer) -> list[Change]:
    if storage.is_block_device:
        raise UnsupportedImage(f"{storage.name}: a fixed disk on a block device cannot be resized")
    tail = meta.ends.footer_offset - meta.size
    if tail >= SECTOR:
        raise UncleanImage(
            f"{storage.name}: {size_text(tail)} lie between the disk's end and the footer; "
            "`vhdtool repair` removes them"
        )
    size, raw = footer.current_size, footer.pack()
    if size == meta.size:
        return footer_changes(meta, footer)
    if size > meta.size:
        # The old footer is guest data from now on.
        clear = bytes(min(tail + SECTOR, size - meta.size))
        return [
            Change("write the footer", size, raw),
            Change("clear the old one", meta.size, clear),
        ]
    return [Change("write the footer", size, raw), Change("cut the file behind it", size + SECTOR)]


def _dynamic(
    storage: FileStorage, meta: Metadata, header: Header, footer: Footer, journal: str
) -> None:
    need = -(-footer.current_size // header.block_bytes)
    mover = BlockMover(storage, meta, header)
    # Blocks behind the old end are no guest data, and must not become visible when the disk grows.
    first = min(need, -(-meta.size // header.block_bytes))
    beyond = [b for b in range(first, len(mover.bat)) if mover.bat[b] != UNUSED]
    if footer.current_size > meta.size:
        _clear_tail(storage, meta, header)
    if beyond:
        # The batmap first: it must never mark a block as full that is not allocated.
        apply(storage, _batmap(storage, meta, header, meta.footer, beyond))
        meta = mover.free(beyond, journal)
    if need <= header.max_entries:
        changes = _batmap(storage, meta, header, footer, []) + footer_changes(meta, footer)
        apply_journalled(storage, journal, changes)
        return
    larger = replace(header, max_entries=need)
    front = _front_end(meta, larger) // SECTOR
    _require_no_orphan(storage, front)
    mover.clear_front(front)
    mover.commit(journal, _larger_tables(header, larger, footer, mover))


def _require_no_orphan(storage: FileStorage, front: int) -> None:
    """Raise UsageError when larger tables would overwrite an orphan block."""
    for one in check(storage, "strict", bitmaps=False).orphans:
        if one.entry < front:
            raise UsageError(
                f"{storage.name}: the larger tables would overwrite a block that no BAT entry "
                f"names, at sector {one.entry}; `vhdtool check` says what it may be and what to do"
            )


def _clear_tail(storage: FileStorage, meta: Metadata, header: Header) -> None:
    """Zero the last block behind the end of the disk, where no guest can have written."""
    layout = BlockLayout(header.block_bytes)
    block, within = divmod(meta.size, header.block_bytes)
    if not within or meta.bat[block] == UNUSED:
        return
    offset = layout.data_offset(meta.bat[block]) + within
    data = storage.pread(offset, header.block_bytes - within)
    if any(data):
        storage.pwrite(offset, bytes(len(data)))
        storage.flush()


def _batmap(
    storage: FileStorage, meta: Metadata, header: Header, footer: Footer, without: list[int]
) -> list[Change]:
    """The batmap without some blocks; its checksum covers as many bits as the size has blocks."""
    if meta.batmap is None:
        return []
    bits = bytearray(believed_batmap(storage, meta))
    for block in without:
        clear_bits(bits, block, 1)
    value = batmap_checksum(bytes(bits), footer.current_size, meta.batmap.version)
    return [
        Change("write the batmap", meta.batmap.offset, bytes(bits)),
        Change("write its header", header.bat_end, replace(meta.batmap, checksum=value).pack()),
    ]


def blocks_to_move(meta: Metadata, header: Header, size: int) -> list[int]:
    """The blocks that the tables for a disk of `size` bytes would overwrite."""
    larger = replace(header, max_entries=-(-size // header.block_bytes))
    if larger.max_entries <= header.max_entries:
        return []
    front = _front_end(meta, larger) // SECTOR
    return [block for block, entry in enumerate(meta.bat) if entry < front]


def _front_end(meta: Metadata, larger: Header) -> int:
    """Byte offset behind all metadata once the tables have their new size."""
    end = larger.bat_end
    if meta.batmap is not None or batmap_expected(meta.footer):
        fresh = batmap_header_for(larger)
        end = fresh.offset + fresh.sectors * SECTOR
    return end + sum(space for _, space in locator_ranges(meta.footer, larger))


def _larger_tables(
    old: Header,
    larger: Header,
    footer: Footer,
    mover: BlockMover,
) -> list[Change]:
    """Changes that write BAT, batmap and locators to the space that the mover cleared.

    The footer is written behind all data and orphan blocks.
    """
    storage, meta = mover.storage, mover.meta
    bat = empty_bat(larger.max_entries)
    bat[: len(mover.bat)] = mover.bat
    data = pack_bat(bat)
    batmap = None
    if meta.batmap is not None:
        fresh = batmap_header_for(larger)
        bits = believed_batmap(storage, meta)
        bits = bits[: -(-old.max_entries // 8)].ljust(fresh.sectors * SECTOR, b"\0")
        value = batmap_checksum(bits, footer.current_size)
        batmap = replace(
            meta.batmap,
            offset=fresh.offset,
            sectors=fresh.sectors,
            version=fresh.version,
            checksum=value,
        )
        data += batmap.pack() + bits
    elif batmap_expected(footer):
        # The batmap is lost; its space is reserved, so that a repair can rebuild it.
        data += bytes(SECTOR + batmap_header_for(larger).sectors * SECTOR)
    table = []
    ranges = locator_ranges(footer, old)
    for one in old.locators:
        if one.capacity and (one.offset, one.capacity) in ranges:
            path = storage.pread(one.offset, min(one.length, one.capacity))
            table.append(replace(one, offset=larger.bat_offset + len(data)))
            data += path.ljust(pad(one.capacity), b"\0")
        else:
            table.append(one)
    header = replace(larger, locators=tuple(table))
    end = footer_offset(
        storage, max(end_of_data(footer, header, batmap, bat), mover.orphans_end) * SECTOR
    )
    changes = [
        Change("write the larger tables", larger.bat_offset, data),
        Change("write the header", footer.data_offset, header.pack()),
        Change("write the footer's copy", 0, footer.pack()),
        Change("write the footer", end, footer.pack()),
    ]
    if meta.ends.file_size > end + SECTOR:
        changes.append(Change("cut the file behind it", end + SECTOR))
    return changes
