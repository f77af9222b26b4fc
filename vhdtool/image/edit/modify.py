"""Changing metadata of an image: its parent, hidden flag, uuid and time stamp."""

import os
from dataclasses import replace
from uuid import UUID

from vhdtool.errors import UnsupportedImage, UsageError
from vhdtool.image.chain.locate_parent import ParentMissing
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.admission import changeable, readable
from vhdtool.image.check.regions import first_free_sector
from vhdtool.image.create.differencing import locator_paths_for, parent_facts, with_parent
from vhdtool.image.journal.transaction import apply_journalled, change_journal_path, writable_image
from vhdtool.image.journal.undo import Change
from vhdtool.image.metadata.bounds import end_of_data, footer_offset
from vhdtool.image.metadata.read import Metadata, read_batmap
from vhdtool.storage import Storage
from vhdtool.storage.image_lock import ImageInUse, LockMode
from vhdtool.storage.paths import persistent_path
from vhdtool.vhd.bat import empty_bat, pack_bat
from vhdtool.vhd.batmap import batmap_checksum
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DIFFERENCING, FIXED, Footer
from vhdtool.vhd.header import LOCATORS, NO_UUID, Header, Locator
from vhdtool.vhd.locators import encode_locator
from vhdtool.vhd.units import SECTOR, pad, size_text


def footer_changes(meta: Metadata, footer: Footer) -> list[Change]:
    """The writes that replace both footers of a closed image; the copy comes first."""
    raw = footer.pack()
    changes = []
    if footer.disk_type != FIXED:
        changes.append(Change("write the footer's copy", 0, raw))
    changes.append(Change("write the footer", meta.ends.footer_offset, raw))
    return changes


def modify_footer(
    path: str | os.PathLike[str],
    hidden: bool | int | None = None,
    uuid: UUID | None = None,
    timestamp: int | None = None,
    mode: LockMode = LockMode.EXCLUSIVE,
) -> Footer:
    """Change fields of both footers; `timestamp` in VHD seconds. Returns the new footer.

    Raises CorruptImage when the image was not closed, ImageInUse or ActivationRefused.
    """
    with writable_image(path, mode) as storage:
        meta = changeable(storage)
        footer = meta.footer
        if hidden is not None:
            footer = replace(footer, hidden=int(hidden))
        if uuid is not None:
            footer = replace(footer, uuid=uuid)
        if timestamp is not None:
            footer = replace(footer, timestamp=timestamp)
        apply_journalled(storage, change_journal_path(path), footer_changes(meta, footer))
    return footer


def modify_parent(
    path: str | os.PathLike[str],
    parent: str | os.PathLike[str],
    raw: bool = False,
    other_disk: bool = False,
    mode: LockMode = LockMode.EXCLUSIVE,
) -> None:
    """Set the parent of a differencing image to `parent`; its own data is not changed.

    The new parent must have the uuid of the old one, or be raw as before, unless `other_disk`:
    wherever the image has no data of its own, its guest data then changes. LockMode.RELINK changes
    an image that is served, whose server never writes header or locators. Raises UsageError for an
    impossible parent (another disk, the image itself, a child of it, or a larger disk),
    UnsupportedImage when the image is not a differencing image.
    """
    facts = parent_facts(parent, raw, without_parents=True)
    if _leads_to(facts.path, persistent_path(path), raw):
        raise UsageError(f"{os.fspath(path)}: {facts.path} is the image itself or a child of it")
    relink = mode is LockMode.RELINK
    with writable_image(path, mode) as storage:
        # An image that is served may have no footer at its end, only the copy.
        meta = readable(storage) if relink else changeable(storage)
        if meta.footer.disk_type != DIFFERENCING or meta.header is None:
            raise UnsupportedImage(f"{storage.name}: not a differencing image, so has no parent")
        if facts.uuid != meta.header.parent_uuid and not other_disk:
            raise UsageError(
                f"{facts.path}: is not the parent of {storage.name}: its uuid is "
                f"{_identity(facts.uuid)}, that of the parent is "
                f"{_identity(meta.header.parent_uuid)}; --other-disk makes it the parent anyway"
            )
        if facts.size > meta.size:
            raise UsageError(f"{facts.path}: is larger than its child, {size_text(meta.size)}")
        table, changes = _locators(storage, meta, meta.header, facts.path, in_place=relink)
        header = with_parent(meta.header, facts, table)
        changes.append(Change("write the header", meta.footer.data_offset, header.pack()))
        apply_journalled(storage, change_journal_path(path), changes)


def _identity(uuid: UUID) -> str:
    return "none (raw)" if uuid == NO_UUID else str(uuid)


def discard_blocks(path: str | os.PathLike[str]) -> None:
    """Free every block: a dynamic image then reads as zeros, a child as its parent.

    Raises UnsupportedImage for a fixed disk, CorruptImage when the image was not closed.
    """
    with writable_image(path) as storage:
        meta = changeable(storage)
        header, batmap = meta.header, meta.batmap
        if header is None:
            raise UnsupportedImage(f"{storage.name}: a fixed disk has no blocks to free")
        changes = []
        # The batmap first: it must never mark a block as full that is not allocated.
        if batmap is not None and read_batmap(storage, batmap, header) is not None:
            bits = bytes(batmap.sectors * SECTOR)
            value = batmap_checksum(bits, meta.size, batmap.version)
            fresh = replace(batmap, checksum=value).pack()
            changes += [
                Change("clear the batmap", batmap.offset, bits),
                Change("write its header", header.bat_end, fresh),
            ]
        table = pack_bat(empty_bat(header.max_entries))
        changes.append(Change("clear the BAT", header.bat_offset, table))
        apply_journalled(storage, change_journal_path(path), changes)
        if storage.is_block_device:
            return
        # Cutting the file needs no journal: a crash leaves leaked space, which a repair removes.
        end = end_of_data(meta.footer, header, batmap, empty_bat(0)) * SECTOR
        storage.pwrite(end, meta.footer.pack())
        storage.flush()
        storage.truncate(end + SECTOR)
        storage.flush()


def set_file_size(path: str | os.PathLike[str], size: int) -> None:
    """Write the footer at the end of `size` bytes, for an image in a volume of that size.

    Raises UsageError when the data does not fit.
    """
    with writable_image(path) as storage:
        meta = changeable(storage, closed=False)
        if meta.header is None:
            raise UnsupportedImage(f"{storage.name}: a fixed disk ends where its data does")
        end = end_of_data(meta.footer, meta.header, meta.batmap, meta.bat) * SECTOR
        if size % SECTOR or size < end + SECTOR:
            raise UsageError(
                f"{storage.name}: {size_text(end + SECTOR)} in use, {size_text(size)} are too few"
            )
        storage.pwrite(size - SECTOR, meta.footer.pack())
        storage.flush()


def _leads_to(parent: str, image: str, raw: bool) -> bool:
    try:
        with open_chain(parent, raw, metadata_only=True) as reader:
            return any(os.path.samefile(layer.name, image) for layer in reader.layers)
    except ParentMissing:
        # A storage manager may have deactivated the older images meanwhile.
        return parent == image


def _locators(
    storage: Storage, meta: Metadata, header: Header, parent: str, in_place: bool
) -> tuple[tuple[Locator, ...], list[Change]]:
    """New locators, in the space of the old ones where they fit, else behind the data."""
    wanted = []
    for code, path in locator_paths_for(storage.name, parent):
        try:
            wanted.append((code, encode_locator(code, path)))
        except UnicodeEncodeError:
            raise UsageError(f"{parent!r}: a path that is not UTF-8 cannot be written") from None
    old = [one for one in header.locators if one.used and one.capacity]
    if len(old) >= len(wanted) and all(
        len(raw) <= (one.capacity or 0) for (_, raw), one in zip(wanted, old, strict=False)
    ):
        table, changes = _in_place(wanted, old)
    elif in_place:
        raise ImageInUse(
            f"{storage.name}: is served, and the space of its locators is too small for the path "
            f"{parent}; pause it first"
        )
    else:
        table, changes = _behind_data(storage, meta, header, wanted)
    return table + (Locator(),) * (LOCATORS - len(table)), changes


def _in_place(
    wanted: list[tuple[bytes, bytes]], old: list[Locator]
) -> tuple[tuple[Locator, ...], list[Change]]:
    table, changes = [], []
    for (code, raw), one in zip(wanted, old, strict=False):
        space = one.capacity or 0
        table.append(replace(one, code=code, length=len(raw)))
        changes.append(Change("write a locator", one.offset, raw.ljust(space, b"\0")))
    return tuple(table), changes


def _behind_data(
    storage: Storage, meta: Metadata, header: Header, wanted: list[tuple[bytes, bytes]]
) -> tuple[tuple[Locator, ...], list[Change]]:
    used = end_of_data(meta.footer, header, meta.batmap, meta.bat)
    layout = BlockLayout(header.block_bytes)
    start = offset = first_free_sector(storage, meta.ends, layout, meta.bat, used) * SECTOR
    table, data = [], b""
    for code, raw in wanted:
        space = pad(len(raw))
        table.append(Locator(code, space, len(raw), 0, offset))
        data += raw.ljust(space, b"\0")
        offset += space
    if footer_offset(storage, offset) > offset:
        return tuple(table), [Change("write the locators", start, data)]
    return tuple(table), [
        Change("write the locators and the footer behind them", start, data + meta.footer.pack())
    ]
