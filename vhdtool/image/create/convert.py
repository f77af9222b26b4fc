"""Conversion of a chain or raw disk to a dynamic, fixed or raw image."""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, Literal, get_args

from vhdtool.errors import UsageError
from vhdtool.image.chain.export import Progress, copiers, copy_range, export_raw
from vhdtool.image.chain.export import stream as write_in_order
from vhdtool.image.chain.layers import Reader
from vhdtool.image.chain.ordered_workers import Turns, for_each
from vhdtool.image.create.empty import check_block_bytes, check_size, locators_offset, new_footer
from vhdtool.image.journal.new_file import new_file
from vhdtool.image.journal.transaction import require_replaceable
from vhdtool.image.metadata.bounds import footer_offset
from vhdtool.ranges import Range, merge
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.bat import empty_bat, pack_bat
from vhdtool.vhd.batmap import batmap_checksum, batmap_header_for
from vhdtool.vhd.bits import all_set, set_bits
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DYNAMIC, FIXED
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import DEFAULT_BLOCK, NO_OFFSET, SECTOR, pad

Format = Literal["raw", "dynamic", "fixed"]
_ZEROS = bytes(64 << 10)
_SAMPLE_SPAN, _SAMPLE = 256 << 10, 512
"""Bytes at the start of each span that decide whether all of it is copied unread."""


def convert(
    reader: Reader,
    path: str | os.PathLike[str],
    target: Format,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Copy the guest data of `reader` to a new image; returns its virtual size in bytes.

    The size is that of the input, rounded up to a sector and never to a geometry. Blocks of zeros
    are not allocated. Raises UsageError, ImageExists, CorruptImage or StorageError.
    """
    names = [layer.name for layer in reader.layers]
    with target_file(names, path, target, reader.size, overwrite) as (storage, size):
        if target == "dynamic":
            check_block_bytes(block_bytes)
            write_dynamic(reader, storage, size, block_bytes, batmap, progress)
        else:
            export_raw(reader, storage, progress=progress)
            finish_flat(storage, target, size)
    return size


@contextmanager
def target_file(
    layers: list[str], path: str | os.PathLike[str], target: Format, size: int, overwrite: bool
) -> Iterator[tuple[FileStorage, int]]:
    """(storage of a new file for a copy of a disk of `size` bytes, virtual size of the copy).

    `layers`: paths of the image that is copied, and of its parents. Raises as `convert` does.
    """
    if target not in get_args(Format):
        raise UsageError(f"unknown format {target!r}: choose raw, dynamic or fixed")
    require_not_a_parent(layers, path)
    require_replaceable(path)
    size = pad(size)
    if target != "raw":
        size = check_size(size)
    with new_file(path, overwrite) as storage:
        # The copy leaves zeros out, so old data on a device must be zeroed first.
        if storage.is_block_device:
            if target == "fixed" and storage.size() != size + SECTOR:
                raise UsageError(f"{storage.name}: a fixed disk must fill its device to the end")
            storage.zero(0, storage.size())
        yield storage, size


def finish_flat(storage: FileStorage, target: Format, size: int) -> None:
    """Set the length of a raw or fixed disk, and write the footer of the latter."""
    storage.truncate(size)
    if target == "fixed":
        storage.pwrite(size, _fixed_footer(size))


def _fixed_footer(size: int) -> bytes:
    return replace(new_footer(size, FIXED), data_offset=NO_OFFSET).pack()


def convert_to_stream(
    reader: Reader, stream: BinaryIO, target: Format, progress: Progress | None = None
) -> int:
    """Write the guest data of `reader` in order, to a pipe for example; returns the virtual size.

    Raises UsageError for a dynamic image, whose tables come before its data; CorruptImage,
    StorageError, OSError.
    """
    if target == "dynamic":
        raise UsageError("a dynamic VHD is not written in order; write a file")
    size = pad(reader.size)
    if target == "fixed":
        size = check_size(size)
    write_in_order(reader, stream, 0, reader.size, progress)
    stream.write(bytes(size - reader.size))
    if target == "fixed":
        stream.write(_fixed_footer(size))
    return size


def require_not_a_parent(layers: list[str], path: str | os.PathLike[str]) -> None:
    """Raise UsageError when `path` is a parent of the image that is copied (the first of `layers`).

    The image itself may be replaced by its copy; its parents may have other children.
    """
    if os.path.exists(path) and any(os.path.samefile(path, one) for one in layers[1:]):
        raise UsageError(f"{os.fspath(path)}: is a parent of {layers[0]}; nothing was written")


def write_dynamic(
    reader: Reader,
    storage: FileStorage,
    size: int,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write a dynamic image of `size` bytes to an empty storage, with blocks in guest order.

    Metadata is written last: until then the file is not a VHD.
    """
    layout = BlockLayout(block_bytes)
    header = Header(max(1, layout.blocks_for(size)), block_bytes)
    footer = new_footer(size, DYNAMIC, batmap)
    copier = _Copier(reader, storage, layout, header, locators_offset(header, batmap))
    tickets = _tickets(reader, layout.block_bytes, progress)
    for_each(tickets, lambda: _Worker(copier).block, copiers(reader, storage))
    end = footer_offset(storage, copier.end * SECTOR)
    storage.pwrite(header.bat_offset, pack_bat(copier.bat))
    if batmap:
        fresh = batmap_header_for(header)
        bits = bytes(copier.full).ljust(fresh.sectors * SECTOR, b"\0")
        head = replace(fresh, checksum=batmap_checksum(bits, size))
        storage.pwrite(header.bat_end, head.pack() + bits)
    storage.pwrite(0, footer.pack() + header.pack())
    storage.pwrite(end, footer.pack())


def _tickets(
    reader: Reader, block_bytes: int, progress: Progress | None
) -> Iterator[tuple[int, int]]:
    """(ticket from 0, block) of every block for which a layer has data, in order."""
    ticket = 0
    following = 0
    for extent in reader.merged():
        if extent.offset is not None:
            first = max(following, extent.start // block_bytes)
            following = max(first, -(-extent.end // block_bytes))
            for block in range(first, following):
                yield ticket, block
                ticket += 1
                if progress is not None:
                    progress(min(block * block_bytes, reader.size))
        elif progress is not None:
            progress(extent.end)


class _Copier:
    """State shared by the workers. `end` is the first free sector of the file."""

    def __init__(
        self, reader: Reader, storage: FileStorage, layout: BlockLayout, header: Header, first: int
    ) -> None:
        self.reader = reader
        self.storage = storage
        self.layout = layout
        self.bat: array[int] = empty_bat(header.max_entries)
        self.full = bytearray(-(-header.max_entries // 8))
        self.end = first // SECTOR
        self.empty = bytes(layout.block_bytes)
        self.turns = Turns()

    def allocate(self, ticket: int, block: int, has_data: bool, full: bool) -> int | None:
        """The BAT entry of a block, assigned in guest order; None for a block of zeros."""
        if not self.turns.wait(ticket):
            return None
        entry = None
        if has_data:
            entry = self.layout.next_entry(self.end)
            if not self.layout.fits(entry + self.layout.total_sectors):
                raise UsageError(f"{self.storage.name}: a VHD has at most 2 TiB of blocks")
            self.bat[block] = entry
            self.end = self.layout.end_sector(entry)
            if full:
                set_bits(self.full, block, 1)
        self.turns.done()
        return entry


def _data_ranges(source: Storage, offset: int, length: int) -> list[Range]:
    """Ranges, relative to `offset`, that are not zero.

    Where the first bytes of a span are not zero the whole span counts as data. Only the other
    spans are read.
    """
    ranges: list[Range] = []
    for at in range(0, length, _SAMPLE_SPAN):
        size = min(_SAMPLE_SPAN, length - at)
        if source.pread(offset + at, _SAMPLE) != _ZEROS[:_SAMPLE]:
            ranges.append((at, at + size))
            continue
        data = source.pread(offset + at, size)
        ranges += [
            (at + inner, at + min(inner + len(_ZEROS), size))
            for inner in range(0, size, len(_ZEROS))
            if not data.startswith(_ZEROS[: size - inner], inner)
        ]
    return merge(ranges)


class _Worker:
    """Copies blocks through a buffer of its own."""

    def __init__(self, copier: _Copier) -> None:
        self.shared = copier
        self.buffer = bytearray(copier.layout.block_bytes)

    def block(self, item: tuple[int, int]) -> None:
        try:
            self._block(*item)
        except BaseException:
            self.shared.turns.break_up()
            raise

    def _block(self, ticket: int, block: int) -> None:
        shared = self.shared
        layout = shared.layout
        start = block * layout.block_bytes
        whole = next(shared.reader.extents(start, start + layout.block_bytes), None)
        if whole is not None and whole.length == layout.block_bytes and whole.offset is not None:
            source = shared.reader.layers[whole.depth].storage
            if (
                source.fileno() is not None
                and not source.direct
                # A raw file may end within its last sector.
                and whole.offset + whole.length <= source.size()
            ):
                self._copy_range(ticket, block, source, whole.offset)
                return
        bitmap = self._fill(block * layout.block_bytes)
        full = all_set(bitmap, layout.sectors)
        entry = shared.allocate(ticket, block, self.buffer != shared.empty, full)
        if entry is None:
            return
        shared.storage.pwrite(entry * SECTOR, bitmap)
        self._store(layout.data_offset(entry))

    def _copy_range(self, ticket: int, block: int, source: Storage, offset: int) -> None:
        """Copy a block that is one range of one file, in the kernel and without its zeros."""
        shared = self.shared
        layout = shared.layout
        ranges = _data_ranges(source, offset, layout.block_bytes)
        entry = shared.allocate(ticket, block, bool(ranges), full=True)
        if entry is None:
            return
        bitmap = bytearray(layout.bitmap_sectors * SECTOR)
        set_bits(bitmap, 0, layout.sectors)
        shared.storage.pwrite(entry * SECTOR, bitmap)
        target = layout.data_offset(entry)
        for first, stop in ranges:
            copy_range(source, offset + first, shared.storage, target + first, stop - first)

    def _fill(self, start: int) -> bytearray:
        """Read a block into the buffer; returns the bitmap of its present sectors."""
        layout = self.shared.layout
        bitmap = bytearray(layout.bitmap_sectors * SECTOR)
        extents = self.shared.reader.extents(start, start + layout.block_bytes)
        parts = [extent for extent in extents if extent.offset is not None]
        if sum(extent.length for extent in parts) < layout.block_bytes:
            self.buffer[:] = self.shared.empty
        with memoryview(self.buffer) as view:
            for extent in parts:
                at = extent.start - start
                self.shared.reader.fetch_into(extent, view[at : at + extent.length])
                first = at // SECTOR
                set_bits(bitmap, first, -(-(at + extent.length) // SECTOR) - first)
        return bitmap

    def _store(self, offset: int) -> None:
        """Write the buffer to the file; runs of zeros stay holes."""
        buffer = self.buffer
        pwrite = self.shared.storage.pwrite
        with memoryview(buffer) as view:
            run = None
            for at in range(0, len(buffer), len(_ZEROS)):
                # startswith compares in place, where a slice would copy.
                zero = buffer.startswith(_ZEROS, at)
                if zero and run is not None:
                    pwrite(offset + run, view[run:at])
                    run = None
                elif not zero and run is None:
                    run = at
            if run is not None:
                pwrite(offset + run, view[run:])
