"""A child's data into its parent, or a whole chain into its base."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from vhdtool.errors import UsageError
from vhdtool.image.chain import open_chain
from vhdtool.image.check import check
from vhdtool.image.disk import DynamicDisk
from vhdtool.image.export import CHUNK, Progress
from vhdtool.image.journal import writable_image
from vhdtool.image.reader import Extent, Layer, Reader
from vhdtool.image.resize import resize
from vhdtool.storage import FileStorage
from vhdtool.storage.holes import Held
from vhdtool.storage.kept import KeptOpen
from vhdtool.vhd.footer import FIXED
from vhdtool.vhd.units import SECTOR, UNUSED


class _Target(Protocol):
    def write(self, offset: int, data: bytes) -> None: ...

    def close(self) -> object: ...


class _Nothing:
    """Stands in for the layers below the target: whole sectors are written, none is read."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def held(self, start: int, end: int) -> Iterator[Held]:
        if start < end:
            yield end - start, False


class _Flat:
    """A raw or fixed disk as a target."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage

    def write(self, offset: int, data: bytes) -> None:
        self.storage.pwrite(offset, data)

    def close(self) -> None:
        self.storage.flush()


@dataclass(frozen=True, slots=True)
class Coalesced:
    """The ancestor's path, and how many guest sectors were written to it."""

    name: str
    sectors: int


def coalesce(
    path: str | os.PathLike[str],
    ancestor: str | os.PathLike[str] | None = None,
    whole: bool = False,
    progress: Progress | None = None,
) -> Coalesced:
    """Writes what `path` and the layers below it have into an ancestor.

    The ancestor is the parent, the one that is named, or with `whole` the oldest. The images
    above it stay as they are, and what they show stays the same at every moment: an interrupted
    run is simply run again. An ancestor that is smaller is grown first. Other children of the
    ancestor will see changed data: the caller must know that there are none.
    Raises UsageError, CorruptImage, or StorageError (disk full: the ancestor stays consistent).
    """
    with open_chain(path) as reader:
        depth = _depth(reader, path, ancestor, whole)
        target = reader.layers[depth]
        name, raw = target.name, target.metadata is None
        larger = reader.size if reader.size > target.size else None
    if larger is not None:
        _grow(name, raw, larger)
    with open_chain(path) as reader:
        depth = _depth(reader, path, name, False)
        upper = Reader(reader.layers[:depth])
        _require_room(upper, reader.layers[depth])
        with writable_image(name) as storage:
            disk = _open(storage, reader.layers[depth])
            sectors = 0
            try:
                for extent in _present(upper):
                    disk.write(extent.start, upper.fetch(extent))
                    sectors += extent.length // SECTOR
                    if progress is not None:
                        progress(extent.end)
            finally:
                disk.close()
    return Coalesced(name, sectors)


def _depth(
    reader: Reader,
    path: str | os.PathLike[str],
    ancestor: str | os.PathLike[str] | None,
    whole: bool,
) -> int:
    if len(reader.layers) < 2:
        raise UsageError(f"{os.fspath(path)}: has no parent to be coalesced into")
    if whole:
        return len(reader.layers) - 1
    if ancestor is None:
        return 1
    wanted = os.path.realpath(ancestor)
    for depth, layer in enumerate(reader.layers[1:], 1):
        if os.path.realpath(layer.name) == wanted:
            return depth
    raise UsageError(f"{os.fspath(ancestor)}: is no ancestor of {os.fspath(path)}")


def _grow(name: str, raw: bool, size: int) -> None:
    if raw:
        with FileStorage(name, writable=True) as storage:
            storage.truncate(size)
            storage.flush()
        return
    resize(name, size)


def _present(upper: Reader) -> Iterator[Extent]:
    for extent in upper.merged():
        if extent.offset is None:
            continue
        for skip in range(0, extent.length, CHUNK):
            size = min(CHUNK, extent.length - skip)
            yield Extent(extent.start + skip, size, extent.depth, extent.offset + skip)


def _require_room(upper: Reader, target: Layer) -> None:
    """Raises UsageError when the new blocks surely do not fit: better before than half way."""
    meta = target.metadata
    if meta is None or meta.layout is None:
        return
    size = meta.layout.block_bytes
    need = 0
    new = set()
    for extent in upper.merged():
        if extent.offset is None:
            continue
        for block in range(extent.start // size, -(-extent.end // size)):
            if meta.bat[block] == UNUSED:
                first, end = max(extent.start, block * size), min(extent.end, (block + 1) * size)
                new.add(block)
                need += end - first
    status = os.statvfs(target.name)
    need += len(new) * meta.layout.bitmap_sectors * SECTOR
    if need > status.f_bavail * status.f_frsize:
        raise UsageError(
            f"{target.name}: {len(new)} new blocks need {need} bytes, more than its file system has"
        )


def _open(storage: FileStorage, layer: Layer) -> _Target:
    if layer.metadata is None or layer.metadata.footer.disk_type == FIXED:
        return _Flat(storage)
    # An interrupted run left no footer at the end; anything worse is not for us to write to.
    report = check(storage, "unclean")
    if report.exit_code == 2:
        first = report.findings[0]
        raise UsageError(f"{storage.name}: is damaged ({first.code}); nothing was written")
    return DynamicDisk(KeptOpen(storage), unclean=True, parent=_Nothing())


def fill(path: str | os.PathLike[str], progress: Progress | None = None) -> int:
    """Allocates every block of an image, with the data that it shows; returns how many were new.

    A differencing image then no longer depends on its parent's data. Raises UsageError for an
    image without blocks, CorruptImage, or StorageError.
    """
    with open_chain(path) as reader:
        meta = reader.layers[0].metadata
        if meta is None or meta.layout is None:
            raise UsageError(f"{os.fspath(path)}: a fixed disk is full already")
        new = sum(1 for entry in meta.bat if entry == UNUSED)
        with writable_image(path) as storage:
            disk = DynamicDisk(KeptOpen(storage), parent=_Nothing())
            try:
                for start in range(0, reader.size, CHUNK):
                    length = min(CHUNK, reader.size - start)
                    disk.write(start, reader.read(start, length))
                    if progress is not None:
                        progress(start + length)
            finally:
                disk.close()
    return new
