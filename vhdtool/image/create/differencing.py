"""Creating differencing images, and the parent fields of their headers."""

import os
from dataclasses import dataclass, replace
from uuid import UUID

from vhdtool.errors import UnsupportedImage, UsageError, VhdtoolError
from vhdtool.image.chain.locate_parent import find_parent
from vhdtool.image.chain.open import ALL, MAX_DEPTH, open_chain
from vhdtool.image.create.empty import (
    check_block_bytes,
    check_size,
    locators_offset,
    new_footer,
    target_storage,
    write_empty,
)
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.storage.paths import persistent_path
from vhdtool.vhd.footer import DIFFERENCING, Footer
from vhdtool.vhd.header import LOCATORS, NO_UUID, Header, Locator
from vhdtool.vhd.locators import MACX, W2KU, W2RU, encode_locator
from vhdtool.vhd.units import DEFAULT_BLOCK, UNUSED, pad, size_text, vhd_time

NAME_BYTES = 512
"""Size of the parent's name in the header."""


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """The fields that a child records of its parent. `size` in bytes, `timestamp` in VHD seconds.

    `chain` has the real paths of the parent and of its own parents, as far as they were opened.
    """

    path: str
    uuid: UUID
    size: int
    timestamp: int
    chain: tuple[str, ...]

    @property
    def depth(self) -> int:
        return len(self.chain)


def parent_facts(
    path: str | os.PathLike[str], raw: bool = False, without_parents: bool = False
) -> ParentFacts:
    """Read the facts about a future parent, and open its own parents unless `without_parents`.

    Raises as `open_chain` does, and ImageInUse while one of them has a writer.
    """
    name = persistent_path(path)
    # Locked against writers: a write to a parent would change what its children show.
    with open_chain(name, raw, without_parents, lock=ALL) as reader:
        meta = reader.layers[0].metadata
        uuid = NO_UUID if meta is None else meta.footer.uuid
        if meta is not None and uuid == NO_UUID:
            raise UnsupportedImage(f"{path}: has no uuid, so no child can refer to it")
        stamp = vhd_time(os.stat(name).st_mtime)
        chain = tuple(persistent_path(layer.name) for layer in reader.layers)
        return ParentFacts(name, uuid, reader.size, stamp, chain)


def _in_chain(path: str | os.PathLike[str], parent: ParentFacts) -> bool:
    """Whether `path` leads to a file of the parent's chain."""
    if not os.path.exists(path):
        return False
    try:
        with open_chain(parent.path, parent.uuid == NO_UUID, metadata_only=True) as reader:
            names = [layer.name for layer in reader.layers]
    except VhdtoolError:
        # A storage manager may have deactivated the older images meanwhile.
        names = [parent.path]
    return any(os.path.samefile(path, name) for name in names)


def create_child(
    path: str | os.PathLike[str],
    parent: ParentFacts,
    size_bytes: int | None = None,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    uuid: UUID | None = None,
    timestamp: int | None = None,
    overwrite: bool = False,
    reserve_bytes: int = 0,
) -> Footer:
    """Create an empty child of `parent`, of the same size unless `size_bytes` is larger.

    Its locators have a relative path (MacX and W2ru) and an absolute one (W2ku), in the forms
    that blktap, Windows and libvhdi expect. Raises UsageError, ImageExists.
    """
    size = check_size(parent.size if size_bytes is None else size_bytes)
    if size < parent.size:
        raise UsageError(
            f"{os.fspath(path)}: a child of {size_text(size)} is smaller than its parent, "
            f"{size_text(parent.size)}"
        )
    if persistent_path(path) in parent.chain or _in_chain(path, parent):
        raise UsageError(f"{os.fspath(path)}: a child cannot replace an image of its own chain")
    check_block_bytes(block_bytes)
    entries = -(-max(size, reserve_bytes and check_size(reserve_bytes)) // block_bytes)
    header = Header(entries, block_bytes)
    table, raw = locator_table(
        os.fspath(path), parent.path, locators_offset(header, batmap), NAME_BYTES
    )
    header = with_parent(header, parent, table)
    footer = new_footer(size, DIFFERENCING, batmap, uuid, timestamp)
    with target_storage(path, overwrite) as storage:
        write_empty(storage, footer, header, batmap, raw)
    return footer


def with_parent(header: Header, parent: ParentFacts, locators: tuple[Locator, ...]) -> Header:
    """The header with another parent. Raises UsageError when the parent's name is too long."""
    name = os.path.basename(parent.path).encode("utf-16-be", "surrogatepass")
    if len(name) > NAME_BYTES:
        raise UsageError(f"{parent.path}: the name is too long for the header of a child")
    return replace(
        header,
        parent_uuid=parent.uuid,
        parent_timestamp=parent.timestamp,
        parent_name=name.ljust(NAME_BYTES, b"\0"),
        locators=locators,
    )


def locator_paths_for(child: str, parent: str) -> list[tuple[bytes, str]]:
    """(code, path) of the locators of a new child, in the order in which blktap tries them."""
    directory = os.path.dirname(persistent_path(child))
    relative = os.path.relpath(parent, directory)
    if not relative.startswith("../"):
        relative = f"./{relative}"
    return [(MACX, relative), (W2KU, parent), (W2RU, relative)]


def locator_table(
    child: str, parent: str, offset: int, min_space: int
) -> tuple[tuple[Locator, ...], bytes]:
    """(locators for the header, their data for byte `offset` of the file).

    Each has a space of at least `min_space` bytes. Raises UsageError for a path that cannot be
    encoded.
    """
    table: list[Locator] = []
    raw = b""
    for code, path in locator_paths_for(child, parent):
        try:
            encoded = encode_locator(code, path)
        except UnicodeEncodeError:
            raise UsageError(f"{parent!r}: a path that is not UTF-8 cannot be written") from None
        # The field counts bytes, as Microsoft's own writers do; the specification has sectors.
        space = max(min_space, pad(len(encoded)))
        table.append(Locator(code, space, len(encoded), 0, offset + len(raw)))
        raw += encoded.ljust(space, b"\0")
    return tuple(table) + (Locator(),) * (LOCATORS - len(table)), raw


def snapshot(
    parent: str | os.PathLike[str],
    child: str | os.PathLike[str],
    raw: bool = False,
    limit: int = MAX_DEPTH,
    skip_empty: bool = True,
    overwrite: bool = False,
    reserve_bytes: int = 0,
    block_bytes: int | None = None,
    batmap: bool = True,
) -> tuple[Footer, str]:
    """Create `child` over `parent`; returns the child's footer and the path of its parent.

    With `skip_empty` a parent that is itself a child without any block is skipped, as the storage
    manager does, so that chains do not grow by empty layers. Raises UsageError when the chain
    would have more than `limit` images (0: no limit).
    """
    given = parent_facts(parent, raw, without_parents=not limit)
    facts = given
    if skip_empty and not raw:
        facts = nearest_with_data(given, without_parents=not limit)
    if limit and facts.depth + 1 > limit:
        raise UsageError(
            f"{os.fspath(parent)}: the chain has {facts.depth} images already, the limit is "
            f"{limit}: coalesce it, or choose another limit"
        )
    if block_bytes is None:
        block_bytes = _block_bytes(facts) or DEFAULT_BLOCK
    footer = create_child(
        child,
        facts,
        given.size,
        block_bytes,
        batmap,
        overwrite=overwrite,
        reserve_bytes=reserve_bytes,
    )
    return footer, facts.path


def _block_bytes(facts: ParentFacts) -> int | None:
    if facts.uuid == NO_UUID:
        return None
    with FileStorage(facts.path) as storage:
        header = read_metadata(storage).header
        return header.block_bytes if header is not None else None


def nearest_with_data(facts: ParentFacts, without_parents: bool = False) -> ParentFacts:
    """The first image with a block, from the given one down; empty children are skipped."""
    while True:
        with FileStorage(facts.path) as storage:
            meta = read_metadata(storage)
            empty = all(entry == UNUSED for entry in meta.bat)
            if meta.footer.disk_type != DIFFERENCING or not empty or meta.header is None:
                return facts
            below = find_parent(facts.path, storage, meta.header)
            raw = meta.header.parent_uuid == NO_UUID
        facts = parent_facts(below, raw, without_parents)
        if raw:
            return facts
