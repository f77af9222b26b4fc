"""The library's API (`import vhdtool`): open, create, snapshot and check an image.

Every error is a VhdtoolError; its message names the file and the position.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self
from uuid import UUID

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.image.chain.check import ChainReport, check_chain
from vhdtool.image.chain.layers import Extent, Reader
from vhdtool.image.chain.open import NONE, PARENTS, open_chain
from vhdtool.image.check.admission import writable as admit_writer
from vhdtool.image.check.image import Mode
from vhdtool.image.create.differencing import snapshot as create_snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.journal.transaction import writable_image
from vhdtool.storage import FileStorage
from vhdtool.vhd.units import DEFAULT_BLOCK

if TYPE_CHECKING:
    from vhdtool.image.disk.base import OpenDisk

Path = str | os.PathLike[str]


class Image:
    """An open image together with its parents: a context manager. Made by `vhdtool.open`."""

    def __init__(self, path: Path, writable: bool = False, force_epoch: int | None = None) -> None:
        self.path = os.fspath(path)
        self.writable = writable
        self._opener = os.getpid()
        self._resources = ExitStack()
        """The open chain, and the claim on an image that is written."""
        with ExitStack() as resources:
            storage = None
            if writable:
                claim = writable_image(self.path, force_epoch=force_epoch)
                storage = resources.enter_context(claim)
            self._open(storage, resources)
            self._resources = resources.pop_all()

    def _open(self, storage: FileStorage | None, resources: ExitStack) -> None:
        hold = NONE if storage is None else PARENTS
        reader = self._reader = resources.enter_context(open_chain(self.path, lock=hold))
        self._target: OpenDisk | None = None
        metadata = reader.layers[0].metadata
        assert metadata is not None
        self._footer = metadata.footer
        self.block_bytes = metadata.header.block_bytes if metadata.header is not None else None
        """Bytes of guest data in a block; None for a fixed disk."""
        if storage is not None:
            self._target = _writer(storage, reader)

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        return self._reader.size

    @property
    def uuid(self) -> UUID:
        return self._footer.uuid

    @property
    def kind(self) -> str:
        """ "fixed", "dynamic" or "differencing"."""
        return self._footer.type_name

    @property
    def chain(self) -> list[str]:
        """Paths of this image and its parents, the oldest last."""
        return [layer.name for layer in self._reader.layers]

    def read(self, offset: int, length: int) -> bytes:
        """Read guest bytes through all parents; fewer at the end of the disk, none behind it."""
        if offset < 0 or length < 0:
            raise UsageError(f"{self.path}: cannot read {length} bytes at {offset}")
        length = max(0, min(length, self.size - offset))
        source = self._target if self._target is not None else self._reader
        return source.read(offset, length) if length else b""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write guest bytes and return their number; they are durable after `flush` or `close`.

        Raises UsageError for an image that was opened for reading, past the end of the disk, and
        in another process than the one that opened it.
        """
        if self._target is None:
            raise UsageError(f"{self.path}: is open for reading only; open it with writable=True")
        if os.getpid() != self._opener:
            raise UsageError(
                f"{self.path}: only the process that opened it (pid {self._opener}) may write it"
            )
        view = memoryview(data).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise UsageError(
                f"{self.path}: {len(view)} bytes at {offset} exceed the end of the disk"
            )
        if len(view):
            self._target.write(offset, view)
        return len(view)

    def allocated(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """The ranges of guest bytes [start, end) that are in a layer, in order.

        All other ranges read as zeros. A range that is in a layer may hold zeros, too.
        """
        reader = open_chain(self.path) if self.writable else self._reader
        try:
            for extent in reader.merged(start, end):
                if extent.offset is not None:
                    yield extent
        finally:
            if reader is not self._reader:
                reader.close()

    def flush(self) -> None:
        """Make all written data durable."""
        if self._target is not None:
            self._target.flush()

    def close(self) -> None:
        """Close the image; an image that was written gets its footer. A second call does nothing.

        In a child process nothing is written: the process that opened the image still uses it.
        """
        target, self._target = self._target, None
        if self.writable and os.getpid() != self._opener:
            self._resources.pop_all()
            return
        try:
            if target is not None:
                target.close()
        finally:
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None:
            self.close()
            return
        # An error in close would hide the error in the `with` block, which is its cause.
        with suppress(VhdtoolError):
            self.close()


def _writer(storage: FileStorage, reader: Reader) -> "OpenDisk":
    # Imported late: opening for reading does not need the write path.
    from vhdtool.image.disk.open import build_disk

    admit_writer(storage, closed=False)
    parents = reader.layers[1:]
    return build_disk(storage, parent=Reader(parents) if parents else None)


def open(path: Path, writable: bool = False, *, force_epoch: int | None = None) -> Image:
    """Open a VHD with all its parents, for reading unless `writable`.

    For writing no other process may have it open, by any name, nor a child of it, and it must
    have been closed. `force_epoch` takes over the lease of a host that is dead.
    Raises ImageInUse, ActivationRefused, NotAVhd, CorruptImage, UncleanImage or StorageError.
    """
    return Image(path, writable, force_epoch)


def create(
    path: Path,
    size: int,
    kind: Literal["dynamic", "fixed"] = "dynamic",
    *,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    overwrite: bool = False,
) -> UUID:
    """Create an empty image of `size` bytes, rounded up to 512; returns its uuid.

    Raises UsageError for an impossible size, ImageExists, or StorageError.
    """
    if kind == "dynamic":
        return create_dynamic(path, size, block_bytes, batmap, overwrite=overwrite).uuid
    if kind == "fixed":
        return create_fixed(path, size, overwrite=overwrite).uuid
    raise UsageError(f"unknown kind {kind!r}: choose dynamic or fixed")


def snapshot(parent: Path, child: Path, *, raw_parent: bool = False) -> UUID:
    """Create `child` over `parent`, which must not be written afterwards; returns the uuid.

    Raises UsageError when the chain would have more than 30 images, ImageExists, CorruptImage.
    """
    footer, _ = create_snapshot(parent, child, raw=raw_parent)
    return footer.uuid


def check(
    path: Path, mode: Mode = "strict", *, bitmaps: bool = True, parents: bool = True
) -> ChainReport:
    """Check an image and its parents; writes nothing.

    `exit_code` of the report: 0 consistent, 2 corrupt, 3 unclean but nothing lost. Raises
    NotAVhd, UsageError or StorageError when the check cannot be done.
    """
    return check_chain(path, mode, bitmaps, parents)
