"""Copying guest data of a chain to a raw file; holes stay holes."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from vhdtool.errors import CorruptImage
from vhdtool.image.chain.layers import Extent, Reader
from vhdtool.image.chain.ordered_workers import THREADS, for_each
from vhdtool.storage import FileStorage, Storage, StorageError
from vhdtool.storage.sparse import DataMap

CHUNK = 1 << 20
_STEP = 1 << 20
Progress = Callable[[int], None]
"""Called with the number of guest bytes done so far."""
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


def pieces(reader: Reader, start: int, end: int) -> Iterator[Extent]:
    """Extents of guest bytes [start, end), none larger than CHUNK."""
    for whole in reader.merged(start, end):
        for skip in range(0, whole.length, CHUNK):
            offset = None if whole.offset is None else whole.offset + skip
            yield Extent(whole.start + skip, min(CHUNK, whole.length - skip), whole.depth, offset)


def stream(
    reader: Reader, target: BinaryIO, start: int, end: int, progress: Progress | None = None
) -> None:
    """Write guest bytes [start, end) to a pipe or file, in order."""
    for piece in pieces(reader, start, end):
        target.write(reader.fetch(piece))
        if progress is not None:
            progress(piece.end - start)


def export_raw(
    reader: Reader,
    target: FileStorage,
    start: int = 0,
    end: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Copy guest bytes [start, end) to the start of an empty file; returns the bytes written.

    Ranges that no layer has become holes, and so do holes in a layer's file. The kernel copies
    where it can. Raises StorageError, or CorruptImage when a layer's file is too short.
    """
    stop = reader.size if end is None else min(end, reader.size)
    target.truncate(max(stop - start, 0))
    maps: dict[int, DataMap] = {}
    written: list[int] = []

    def work(extent: Extent) -> None:
        written.append(_copy(reader, extent, target, extent.start - start, maps))

    for_each(_with_data(reader, start, stop, progress), lambda: work, copiers(reader, target))
    return sum(written)


def copiers(reader: Reader, target: FileStorage) -> int:
    """Number of threads for a copy: one where the kernel copies within one file system.

    Writers of one file wait for each other; only reads from another device run in parallel.
    """
    device = _device(target)
    same_device = all(_device(layer.storage) == device for layer in reader.layers)
    return 1 if same_device else THREADS


def _device(storage: Storage) -> int | None:
    """The device of a storage's file; None for a storage without a descriptor."""
    fd = storage.fileno()
    return None if fd is None else os.fstat(fd).st_dev


def _with_data(
    reader: Reader, start: int, stop: int, progress: Progress | None
) -> Iterator[Extent]:
    for extent in reader.merged(start, stop):
        if extent.offset is not None:
            for skip in range(0, extent.length, _STEP):
                size = min(_STEP, extent.length - skip)
                yield Extent(extent.start + skip, size, extent.depth, extent.offset + skip)
        if progress is not None:
            progress(extent.end - start)


def _copy(
    reader: Reader, extent: Extent, target: FileStorage, position: int, maps: dict[int, DataMap]
) -> int:
    assert extent.offset is not None
    source = reader.layers[extent.depth].storage
    fd = source.fileno()
    if fd is None:
        return _copy_buffered(reader, extent, target, position)
    size = source.size()
    if extent.offset + extent.length > size and reader.layers[extent.depth].metadata is not None:
        raise CorruptImage(
            f"{source.name}: the file ends within guest bytes {extent.start} to {extent.end}; "
            "see `vhdtool check`"
        )
    end = min(extent.offset + extent.length, size)
    written = 0
    holes = maps.setdefault(extent.depth, DataMap(fd))
    for first, stop in holes.ranges(extent.offset, end):
        copy_range(source, first, target, position + first - extent.offset, stop - first)
        written += stop - first
    return written


def _copy_buffered(reader: Reader, extent: Extent, target: FileStorage, position: int) -> int:
    assert extent.offset is not None
    for skip in range(0, extent.length, CHUNK):
        size = min(CHUNK, extent.length - skip)
        part = Extent(extent.start + skip, size, extent.depth, extent.offset + skip)
        target.pwrite(position + skip, reader.fetch(part))
    return extent.length


def copy_range(
    source: Storage, source_offset: int, target: FileStorage, target_offset: int, length: int
) -> None:
    """Copy bytes, in the kernel where it can. Raises CorruptImage, StorageError."""
    while length > 0:
        step = min(length, _STEP)
        count = _kernel_copy(source, source_offset, target, target_offset, step)
        if count == 0:
            data = source.pread(source_offset, min(length, CHUNK))
            if not data:
                raise CorruptImage(f"{source.name}: became shorter while it was copied")
            target.pwrite(target_offset, data)
            count = len(data)
        source_offset += count
        target_offset += count
        length -= count


def _kernel_copy(
    source: Storage, source_offset: int, target: FileStorage, target_offset: int, length: int
) -> int:
    """Number of bytes that the kernel copied; 0 where it cannot copy between these two."""
    fd = source.fileno()
    if fd is None:
        return 0
    try:
        return os.copy_file_range(fd, target.fileno(), length, source_offset, target_offset)
    except OSError as error:
        if error.errno in _NO_COPY:
            return 0
        action = f"copy {length} bytes to {target_offset}"
        raise StorageError(target.name, action, error.errno or 0) from None
