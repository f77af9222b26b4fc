"""Whether a change fits on the storage, decided before the first write."""

import errno
import os

from vhdtool.image.chain.layers import Layer, Reader
from vhdtool.image.edit.resize import blocks_to_move
from vhdtool.image.metadata.read import Metadata
from vhdtool.storage import FileStorage, StorageError
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED, size_text


def require_capacity(upper: Reader, target: Layer, size: int) -> None:
    """Raise StorageError (ENOSPC) when the data of `upper` does not fit into `target`.

    `size`: virtual size of the target after the change. The estimate is a lower bound, so that a
    copy that fits is never refused; other users of the file system may still fill it.
    """
    meta = target.metadata
    if meta is None or meta.header is None or meta.layout is None:
        _require_flat(upper, target, size)
        return
    new, data = _new_blocks(upper, meta, meta.layout)
    what = f"{len(new)} new blocks"
    if _is_device(target):
        moved = len(blocks_to_move(meta, meta.header, size))
        last = max((entry for entry in meta.bat if entry != UNUSED), default=0)
        end = meta.layout.end_sector(last) + (len(new) + moved) * meta.layout.stride
        _require(target.name, what, (end + 1) * SECTOR, target.storage.size())
        return
    data += len(new) * meta.layout.bitmap_sectors * SECTOR
    _require(target.name, what, data + _moved(meta, meta.header, size), _free(target.name))


def require_full(name: str, metadata: Metadata, layout: BlockLayout) -> None:
    """Raise StorageError (ENOSPC) when the file system has no space for all unallocated blocks."""
    new = sum(1 for entry in metadata.bat if entry == UNUSED)
    with FileStorage(name) as storage:
        if storage.is_block_device:
            return
    _require(name, f"{new} new blocks", new * layout.total_sectors * SECTOR, _free(name))


def _require_flat(upper: Reader, target: Layer, size: int) -> None:
    if _is_device(target):
        _require(target.name, f"a disk of {size_text(size)}", size, target.storage.size())
        return
    need = 0
    for extent in upper.merged():
        if extent.offset is not None:
            holes = target.ranges(extent.start, extent.end)
            need += sum(length for _, length, offset in holes if offset is None)
    _require(target.name, "new data", need, _free(target.name))


def _new_blocks(upper: Reader, meta: Metadata, layout: BlockLayout) -> tuple[set[int], int]:
    """(blocks to allocate in the target, bytes of data for them)."""
    size = layout.block_bytes
    new, data = set(), 0
    for extent in upper.merged():
        if extent.offset is None:
            continue
        for block in range(extent.start // size, -(-extent.end // size)):
            if block >= len(meta.bat) or meta.bat[block] == UNUSED:
                new.add(block)
                data += min(extent.end, (block + 1) * size) - max(extent.start, block * size)
    return new, data


def _moved(meta: Metadata, header: Header, size: int) -> int:
    """Bytes of the blocks that larger tables move to the end of the file."""
    layout = BlockLayout(header.block_bytes)
    return len(blocks_to_move(meta, header, size)) * layout.total_sectors * SECTOR


def _is_device(layer: Layer) -> bool:
    return layer.storage.is_block_device


def _free(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _require(name: str, what: str, need: int, available: int) -> None:
    if need > available:
        text = f"write {what}: {size_text(need)} needed, {size_text(available)} available"
        raise StorageError(name, text, errno.ENOSPC)
