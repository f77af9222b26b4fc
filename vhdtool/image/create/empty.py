"""Creating empty images.

The layout is blktap's: footer copy, header, BAT, batmap, locators, footer.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID, uuid4

from vhdtool.errors import UsageError
from vhdtool.image.journal.new_file import new_file
from vhdtool.image.journal.transaction import require_replaceable
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import batmap_checksum, batmap_header_for
from vhdtool.vhd.footer import DYNAMIC, FIXED, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import (
    DEFAULT_BLOCK,
    MAX_SIZE,
    NO_OFFSET,
    SECTOR,
    SMALLEST_BLOCK,
    UNUSED,
    is_power_of_two,
    pad,
    size_text,
    vhd_time,
)

Target = Storage | str | os.PathLike[str]
WITH_BATMAP = 0x00010003
WITHOUT_BATMAP = 0x00010001
"""blktap looks for a batmap in every later version, and refuses an image that lacks it."""
_CHUNK = 1 << 20


def create_dynamic(
    target: Target,
    size_bytes: int,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    uuid: UUID | None = None,
    timestamp: int | None = None,
    overwrite: bool = False,
    reserve_bytes: int = 0,
) -> Footer:
    """Create an empty dynamic image of `size_bytes` (rounded up to 512); it is durable on return.

    `timestamp` is in seconds since 2000, now by default. `reserve_bytes`: the BAT is large enough
    for a disk of that size, so that a later resize is quick. A storage must be empty and stays
    open. Raises UsageError for impossible sizes, ImageExists.
    """
    size = check_size(size_bytes)
    check_block_bytes(block_bytes)
    entries = -(-max(size, reserve_bytes and check_size(reserve_bytes)) // block_bytes)
    header = Header(max_entries=entries, block_bytes=block_bytes)
    footer = new_footer(size, DYNAMIC, batmap, uuid, timestamp)
    with target_storage(target, overwrite) as storage:
        write_empty(storage, footer, header, batmap)
    return footer


def create_fixed(
    target: Target,
    size_bytes: int,
    uuid: UUID | None = None,
    timestamp: int | None = None,
    overwrite: bool = False,
) -> Footer:
    """Create a fixed image: `size_bytes` of zeros (a hole where possible), then the footer.

    Arguments and errors as in `create_dynamic`.
    """
    size = check_size(size_bytes)
    footer = replace(new_footer(size, FIXED, True, uuid, timestamp), data_offset=NO_OFFSET)
    with target_storage(target, overwrite) as storage:
        storage.truncate(size)
        storage.pwrite(size, footer.pack())
        storage.flush()
    return footer


def check_size(size_bytes: int) -> int:
    """The size rounded up to a sector. Raises UsageError where no VHD can have it."""
    size = pad(size_bytes)
    if not 0 < size <= MAX_SIZE:
        raise UsageError(
            f"a size of {size_text(size_bytes)} is impossible: choose 1 byte up to 2040 GiB"
        )
    return size


def check_block_bytes(block_bytes: int) -> None:
    """Raise UsageError unless a block of that size can be created."""
    if block_bytes < SMALLEST_BLOCK or not is_power_of_two(block_bytes) or block_bytes >= 1 << 32:
        raise UsageError(
            f"a block of {size_text(block_bytes)} is impossible: choose a power of two from "
            "512 KiB up"
        )


def new_footer(
    size: int,
    disk_type: int,
    batmap: bool = True,
    uuid: UUID | None = None,
    timestamp: int | None = None,
) -> Footer:
    """A footer as blktap writes it, from which the real tapdisk, QEMU and Windows read its size."""
    return Footer(
        current_size=size,
        original_size=size,
        disk_type=disk_type,
        geometry=Geometry.for_size(size),
        uuid=uuid if uuid is not None else uuid4(),
        timestamp=vhd_time(time.time()) if timestamp is None else timestamp,
        creator_version=WITH_BATMAP if batmap else WITHOUT_BATMAP,
        data_offset=SECTOR,
    )


@contextmanager
def target_storage(target: Target, overwrite: bool) -> Iterator[Storage]:
    """The storage of a new image: a new file for a path, or the given empty storage.

    Raises ImageExists, or UsageError for a storage that is not empty.
    """
    if isinstance(target, (str, os.PathLike)):
        require_replaceable(target)
        with new_file(target, overwrite) as storage:
            yield storage
        return
    if target.size() and not overwrite:
        raise UsageError(f"{target.name}: is not empty; nothing was written")
    target.truncate(0)
    yield target


def write_empty(
    storage: Storage,
    footer: Footer,
    header: Header,
    batmap: bool,
    locators: bytes = b"",
) -> int:
    """Write all metadata of an image without blocks, the footer last; returns the file's size.

    `locators` are whole sectors for the offset `locators_offset`. The footer is written after a
    flush: an interrupted creation leaves no valid footer at the end.
    """
    end = header.bat_end
    _write_unused_bat(storage, header)
    if batmap:
        fresh = batmap_header_for(header)
        bits = bytes(fresh.sectors * SECTOR)
        fresh = replace(fresh, checksum=batmap_checksum(bits, footer.current_size))
        storage.pwrite(header.bat_end, fresh.pack() + bits)
        end = locators_offset(header, batmap)
    if locators:
        storage.pwrite(end, locators)
        end += len(locators)
    # A device has no name to withhold: it must not look like a VHD before its tables are complete.
    storage.flush()
    storage.pwrite(0, footer.pack() + header.pack())
    storage.flush()
    end = _footer_offset(storage, end)
    storage.pwrite(end, footer.pack())
    storage.flush()
    return end + SECTOR


def locators_offset(header: Header, batmap: bool) -> int:
    """Byte offset of the locators of a new image, behind BAT and batmap."""
    if not batmap:
        return header.bat_end
    fresh = batmap_header_for(header)
    return fresh.offset + fresh.sectors * SECTOR


def _footer_offset(storage: Storage, end: int) -> int:
    # The length of a block device is fixed; its footer is at the end of the device.
    return max(end, storage.size() - SECTOR)


def _write_unused_bat(storage: Storage, header: Header) -> None:
    """Write a BAT without allocated blocks, padded with zeros."""
    left = 4 * header.max_entries
    offset = header.bat_offset
    entry = UNUSED.to_bytes(4, "big")
    while left > _CHUNK:
        storage.pwrite(offset, entry * (_CHUNK // 4))
        offset += _CHUNK
        left -= _CHUNK
    storage.pwrite(offset, (entry * (left // 4)).ljust(pad(left), b"\0"))
