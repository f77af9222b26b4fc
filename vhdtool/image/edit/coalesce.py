"""Copying a child's data into its parent, or the data of a chain into its base."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vhdtool.errors import CorruptImage, UsageError
from vhdtool.image.chain.export import CHUNK, Progress
from vhdtool.image.chain.layers import Extent, Layer, Reader
from vhdtool.image.chain.open import PARENTS, open_chain
from vhdtool.image.check.admission import changeable, writable
from vhdtool.image.disk.base import OpenDisk, ZeroParent
from vhdtool.image.disk.open import build_disk
from vhdtool.image.edit.capacity import require_capacity, require_full
from vhdtool.image.edit.resize import resize
from vhdtool.image.journal.transaction import writable_image
from vhdtool.leases.claim import claimed
from vhdtool.storage import FileStorage
from vhdtool.storage.base import BorrowedStorage
from vhdtool.storage.image_lock import ImageInUse, LockMode
from vhdtool.vhd.units import SECTOR, UNUSED


@dataclass(frozen=True, slots=True)
class Coalesced:
    """The ancestor's path, and the number of guest sectors written to it."""

    name: str
    sectors: int


def coalesce(
    path: str | os.PathLike[str],
    ancestor: str | os.PathLike[str] | None = None,
    whole: bool = False,
    progress: Progress | None = None,
    mode: LockMode = LockMode.EXCLUSIVE,
) -> Coalesced:
    """Copy the data of `path` and the layers below it into an ancestor, and read it back.

    The ancestor is the parent, or `ancestor`, or with `whole` the base. The images above it are
    not written and show the same data at every moment, so an interrupted run can be repeated. A
    smaller ancestor is grown first. Other children of the ancestor would see changed data: the
    caller must know that there are none. The images are locked against writers; with
    LockMode.BENEATH a child of them may be served.
    Raises ImageInUse or ActivationRefused, UsageError, CorruptImage, or StorageError (disk full:
    the ancestor stays consistent).
    """
    with open_chain(path) as reader:
        depth = _depth(reader, path, ancestor, whole)
        name = reader.layers[depth].name
    with _locked_chain(path, name, depth) as reader:
        target = reader.layers[depth]
        raw = target.metadata is None
        require_capacity(Reader(reader.layers[:depth]), target, max(reader.size, target.size))
        larger = reader.size if reader.size > target.size else None
    if larger is not None:
        _grow(name, raw, larger, mode)
    with _locked_chain(path, name, depth) as reader:
        upper = Reader(reader.layers[:depth])
        digest = _digest()
        with writable_image(name, mode) as storage:
            disk = _open(storage, reader.layers[depth])
            sectors = 0
            try:
                for extent in _data_extents(upper):
                    data = upper.fetch(extent)
                    digest.update(data)
                    disk.write(extent.start, data)
                    sectors += extent.length // SECTOR
                    if progress is not None:
                        progress(extent.end)
            finally:
                disk.close()
        _verify(name, raw, upper, digest)
    return Coalesced(name, sectors)


@contextmanager
def _locked_chain(path: str | os.PathLike[str], ancestor: str, depth: int) -> Iterator[Reader]:
    """Open the chain with the layers above the ancestor locked. Raises ImageInUse if it changed."""
    with open_chain(path, lock=range(depth)) as reader:
        if [layer.name for layer in reader.layers[depth : depth + 1]] != [ancestor]:
            raise ImageInUse(f"{os.fspath(path)}: its parents were changed meanwhile; run it again")
        yield reader


def ancestor_of(
    path: str | os.PathLike[str], ancestor: str | os.PathLike[str] | None, whole: bool
) -> str:
    """The path of the image that `coalesce` would write. Raises as `coalesce` does."""
    with open_chain(path) as reader:
        return reader.layers[_depth(reader, path, ancestor, whole)].name


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=32)


def _verify(name: str, raw: bool, upper: Reader, written: hashlib.blake2b) -> None:
    """Read back the data. Raises CorruptImage unless its digest is that of the data written."""
    if not raw:
        with FileStorage(name) as ancestor:
            changeable(ancestor)
    digest = _digest()
    with open_chain(name, raw) as result:
        fd = result.layers[0].storage.fileno()
        if fd is not None:
            # Drop the page cache, so that the data comes from the disk where that is possible.
            with suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for extent in _data_extents(upper):
            digest.update(result.read(extent.start, extent.length))
    if digest.digest() != written.digest():
        raise CorruptImage(
            f"{name}: reads back other data than was written: keep {upper.layers[0].name}, and "
            "check the storage"
        )


def _depth(
    reader: Reader,
    path: str | os.PathLike[str],
    ancestor: str | os.PathLike[str] | None,
    whole: bool,
) -> int:
    if len(reader.layers) < 2:
        raise UsageError(f"{os.fspath(path)}: has no parent to coalesce into")
    if whole:
        return len(reader.layers) - 1
    if ancestor is None:
        return 1
    wanted = os.path.realpath(ancestor)
    for depth, layer in enumerate(reader.layers[1:], 1):
        if os.path.realpath(layer.name) == wanted:
            return depth
    raise UsageError(f"{os.fspath(ancestor)}: is not an ancestor of {os.fspath(path)}")


def _grow(name: str, raw: bool, size: int, mode: LockMode) -> None:
    if raw:
        with claimed(name, mode) as storage:
            storage.truncate(size)
            storage.flush()
        return
    try:
        # Exclusively first: larger tables may be needed, which a served child does not allow.
        resize(name, size)
    except ImageInUse:
        if mode is LockMode.EXCLUSIVE:
            raise
        resize(name, size, mode=mode)


def _data_extents(upper: Reader) -> Iterator[Extent]:
    for extent in upper.merged():
        if extent.offset is None:
            continue
        for skip in range(0, extent.length, CHUNK):
            size = min(CHUNK, extent.length - skip)
            yield Extent(extent.start + skip, size, extent.depth, extent.offset + skip)


def _open(storage: FileStorage, layer: Layer) -> OpenDisk:
    raw = layer.metadata is None
    if not raw:
        # An interrupted run left no footer at the end; an image with other damage is refused.
        writable(storage, closed=False)
    return build_disk(BorrowedStorage(storage), raw=raw, unclean=True, parent=ZeroParent())


def fill(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
) -> int:
    """Allocate every block of an image, with its guest data; returns the number of new blocks.

    A differencing image then no longer depends on the data of its parent. Raises UsageError for an
    image without blocks, ImageInUse or ActivationRefused, CorruptImage, or StorageError.
    """
    with writable_image(path) as storage, open_chain(path, lock=PARENTS) as reader:
        meta = reader.layers[0].metadata
        if meta is None or meta.layout is None:
            raise UsageError(f"{os.fspath(path)}: a fixed disk is full already")
        new = sum(1 for entry in meta.bat if entry == UNUSED)
        require_full(os.fspath(path), meta, meta.layout)
        writable(storage, closed=False)
        disk = build_disk(BorrowedStorage(storage), parent=ZeroParent())
        try:
            for start in range(0, reader.size, CHUNK):
                length = min(CHUNK, reader.size - start)
                disk.write(start, reader.read(start, length))
                if progress is not None:
                    progress(start + length)
        finally:
            disk.close()
    return new
