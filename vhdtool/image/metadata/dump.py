"""The metadata dump of a VHD or qcow2 image: all its metadata as one JSON value."""

from typing import Any

from vhdtool.errors import CorruptImage, UnsupportedImage, VhdtoolError
from vhdtool.image.metadata import qcow2
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.image.metadata.read import (
    check_table,
    read_bat,
    read_batmap,
    read_batmap_header,
    read_header,
)
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import batmap_possible
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import FIXED
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

SCHEMA = 1


def dump_metadata(storage: Storage) -> dict[str, Any]:
    """Dump all metadata of an image, closed or in use, in JSON types.

    Keys: schema, file_size (bytes), footer (with "place": "end" or "copy"; null when neither is
    valid), header, bat (block -> first sector in the file), bitmaps (block -> hex of the bits,
    one a sector of the block; of no more blocks than fit into the file), batmap (hex or null).
    Values that cannot be read are null or left out; a dump makes no findings. Raises NotAVhd, or
    StorageError.
    """
    ends = read_ends(storage)
    result = _empty_dump(ends.file_size)
    result["footer"] = _footer(ends)
    header = _usable_header(storage, ends)
    if header is None:
        return result
    result["header"] = header.as_dict()
    layout = BlockLayout(header.block_bytes)
    bat = result["bat"]
    bitmaps = result["bitmaps"]
    table = read_bat(storage, header)
    # A damaged BAT may name millions of blocks, many more than the file has.
    bitmaps_left = storage.size() // SECTOR // layout.total_sectors + 1
    for block, sector in enumerate(table):
        if sector != UNUSED:
            bat[str(block)] = sector
            if bitmaps_left:
                bits = storage.pread(sector * SECTOR, layout.bitmap_bytes)
                bitmaps[str(block)] = bits.hex()
                bitmaps_left -= bool(bits)
    footer = ends.best
    if footer is not None and batmap_possible(footer):
        batmap = read_batmap_header(storage, header)
        full = read_batmap(storage, batmap, header) if batmap is not None else None
        result["batmap"] = full[: -(-header.max_entries // 8)].hex() if full is not None else None
    # A live image grows meanwhile; the size now covers every block in the dump.
    result["file_size"] = storage.size()
    return result


def dump_qcow2_metadata(storage: Storage) -> dict[str, Any]:
    """Dump the mapping of a qcow2 image in the same schema; a block is a cluster.

    QEMU caches its tables until it flushes: the file may lag behind. A mapping that is in the file
    stays there unless another writer overwrites it. An image that is damaged or not supported was
    overwritten, and its dump has neither header nor BAT.
    """
    result = _empty_dump(storage.size())
    try:
        header = qcow2.read_header(storage)
        offsets = dict(qcow2.cluster_offsets(storage, header))
    except (CorruptImage, UnsupportedImage):
        return result
    result["header"] = {
        "block_bytes": header.cluster,
        "bat_offset": header.l1_offset,
        "max_entries": header.clusters,
        "parent_uuid": "",
    }
    result["bat"] = {str(cluster): offset // SECTOR for cluster, offset in offsets.items()}
    result["bitmaps"] = dict.fromkeys(result["bat"])
    # As above.
    result["file_size"] = storage.size()
    return result


def _empty_dump(file_size: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "file_size": file_size,
        "footer": None,
        "header": None,
        "bat": {},
        "bitmaps": {},
        "batmap": None,
    }


def _footer(ends: Ends) -> dict[str, Any] | None:
    best = ends.best
    if best is None:
        return None
    return {**best.as_dict(), "place": "end" if best is ends.footer else "copy"}


def _usable_header(storage: Storage, ends: Ends) -> Header | None:
    footer = ends.best
    if footer is not None and footer.disk_type == FIXED:
        return None
    try:
        header = read_header(storage, footer.data_offset if footer is not None else SECTOR)
        header.validate(storage.name)
        if footer is not None:
            check_table(storage.name, header, footer, ends.file_size)
        elif header.bat_offset + 4 * header.max_entries > ends.file_size:
            return None
    except VhdtoolError:
        return None
    return header
