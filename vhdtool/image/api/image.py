"""An image as an object: open, read, write, close."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Never, Self
from uuid import UUID

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.image.api.requests import Requests
from vhdtool.image.chain.disk_file import DiskFile
from vhdtool.image.chain.layers import Extent, Layer, Reader
from vhdtool.image.chain.locate_parent import ParentMismatch
from vhdtool.image.chain.open import NONE, PARENTS, open_chain
from vhdtool.image.check.admission import readable
from vhdtool.image.check.admission import writable as admit_writer
from vhdtool.image.journal.transaction import writable_image
from vhdtool.leases.claim import share
from vhdtool.storage import Storage
from vhdtool.storage.file_object import FileObject, FileObjectStorage
from vhdtool.vhd.footer import DIFFERENCING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from vhdtool.image.disk.base import OpenDisk

Path = str | os.PathLike[str]


class Image:
    """An open image together with its parents: a context manager. Made by `vhdtool.open`.

    Several threads may use one image. Offsets and lengths are bytes of the guest's disk.
    """

    path: str
    """The path, or the name of the file object."""
    _reader: Reader
    _requests: Requests
    _resources: ExitStack | None = None
    """The open chain, and the claim on an image that is written; None once it is closed."""

    def __init__(
        self,
        source: Path | FileObject,
        writable: bool = False,
        *,
        parent: "Image | None" = None,
        force_epoch: int | None = None,
    ) -> None:
        self.writable = writable
        self._opener = os.getpid()
        self._parent = parent
        self._target: OpenDisk | None = None
        if parent is not None and parent.writable:
            raise UsageError(f"{parent.path}: a parent is never written; open it for reading")
        with ExitStack() as resources:
            if isinstance(source, str | os.PathLike):
                self.path = os.fspath(source)
                storage = self._open_path(resources, force_epoch)
            else:
                storage = self._open_object(source)
            below = parent._requests if parent is not None else None  # noqa: SLF001 - our class
            self._requests = Requests(self.path, below)
            metadata = self._reader.layers[0].metadata
            assert metadata is not None
            self._footer = metadata.footer
            self.block_bytes = metadata.header.block_bytes if metadata.header is not None else None
            """Bytes of guest data in a block; None for a fixed disk."""
            if storage is not None:
                self._storage = storage
                self._target = _writer(storage, self._reader)
            self._resources = resources.pop_all()

    def _open_path(self, resources: ExitStack, force_epoch: int | None) -> Storage | None:
        """Open the image and its parents; return the storage to write to, if any."""
        storage = None
        if self.writable:
            claim = writable_image(self.path, force_epoch=force_epoch)
            storage = resources.enter_context(claim)
        given = self._parent is not None
        locked = NONE if storage is None else PARENTS
        reader = open_chain(self.path, without_parents=given, lock=locked)
        resources.enter_context(reader)
        self._reader = self._over_parent(reader.layers[0]) if given else reader
        return storage

    def _open_object(self, file: FileObject) -> Storage | None:
        """Open an image in a file object, which the caller closes."""
        storage = FileObjectStorage(file, self.writable)
        self.path = storage.name
        if self.writable and storage.has_descriptor:
            raise UsageError(
                f"{self.path}: open a file by its path to write it: a file object cannot be locked"
            )
        self._reader = self._over_parent(Layer(storage, readable(storage)))
        return storage if self.writable else None

    def _over_parent(self, layer: Layer) -> Reader:
        """The image over the given parent. Raises UsageError, ParentMismatch or ImageInUse."""
        metadata, parent = layer.metadata, self._parent
        assert metadata is not None
        if metadata.footer.disk_type != DIFFERENCING or metadata.header is None:
            if parent is not None:
                raise UsageError(f"{self.path}: has no parent; leave `parent` out")
            return Reader([layer])
        if parent is None:
            raise UsageError(
                f"{self.path}: a child in a file object has no directory in which to find its "
                "parent; open that, and give it as `parent`"
            )
        if metadata.header.parent_uuid != parent.uuid:
            raise ParentMismatch(
                f"{self.path}: {parent.path} is not its parent: the parent has the uuid "
                f"{metadata.header.parent_uuid}, this image {parent.uuid}"
            )
        below = parent._reader.layers  # noqa: SLF001 - of our class
        for one in below if self.writable else []:
            share(one.storage)
        return Reader([layer, *below])

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

    @property
    def closed(self) -> bool:
        """Whether it was closed: then every request raises ClosedError."""
        return self._resources is None

    def read(self, offset: int, length: int) -> bytes:
        """Read guest bytes through all parents; fewer at the end of the disk, none behind it."""
        length = self._readable(offset, length)
        with self._requests:
            source = self._target if self._target is not None else self._reader
            return source.read(offset, length) if length else b""

    def readinto(self, offset: int, buffer: "WriteableBuffer") -> int:
        """Read guest bytes into `buffer`; return their number, lower at the end of the disk."""
        view = memoryview(buffer).cast("B")
        length = self._readable(offset, len(view))
        with self._requests:
            if self._target is None:
                self._reader.read_into(offset, view[:length])
            elif length:
                view[:length] = self._target.read(offset, length)
        return length

    def _readable(self, offset: int, length: int) -> int:
        """Bytes of a read that lie on the disk. Raises UsageError."""
        if offset < 0 or length < 0:
            raise UsageError(f"{self.path}: cannot read {length} bytes at {offset}")
        if self.writable and os.getpid() != self._opener:
            # Its tables in memory are those of the fork, and the opener goes on writing.
            raise self._other_process()
        return max(0, min(length, self.size - offset))

    def write(self, offset: int, data: "ReadableBuffer") -> int:
        """Write guest bytes and return their number; they are durable after `flush` or `close`.

        Raises UsageError for an image that was opened for reading, past the end of the disk, and
        in another process than the one that opened it; SplitBrain where another writer was here.
        """
        view = memoryview(data).cast("B")
        with self._requests:
            target = self._writable(offset, len(view))
            if len(view):
                target.write(offset, view)
        return len(view)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeros, without allocating where that is possible.

        Raises as `write` does.
        """
        with self._requests:
            self._writable(offset, length).write_zeroes(offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Tell that a range is not needed: its whole sectors may be freed in the file.

        It then reads as zeros or as before; a range of a parent is never freed. Raises as `write`
        does.
        """
        with self._requests:
            self._writable(offset, length).trim(offset, length)

    def _writable(self, offset: int, length: int) -> "OpenDisk":
        """The open disk that writes the range. Raises UsageError."""
        if self._target is None:
            raise UsageError(f"{self.path}: is open for reading only; open it with writable=True")
        if os.getpid() != self._opener:
            raise self._other_process()
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UsageError(f"{self.path}: {length} bytes at {offset} exceed the end of the disk")
        return self._target

    def _other_process(self) -> UsageError:
        return UsageError(
            f"{self.path}: only the process that opened it (pid {self._opener}) may use it, as it "
            "is open for writing"
        )

    def allocated(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """The ranges of guest bytes [start, end) that are in a layer, in order.

        All other ranges read as zeros. A range that is in a layer may hold zeros, too.
        """
        return (one for one in self.extents(start, end) if one.offset is not None)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """All extents of guest bytes [start, end), in order, neighbours merged.

        One whose `offset` is None is in no layer, and reads as zeros.
        """
        reader = self._reader
        if self.writable:
            with self._requests:
                self._readable(0, 0)
                # The tables have changed since the image was opened.
                fresh = Layer(self._storage, readable(self._storage))
                reader = Reader([fresh, *reader.layers[1:]])
        found = reader.merged(start, end)
        while True:
            with self._requests:
                extent = next(found, None)
            if extent is None:
                return
            yield extent

    def as_file(self) -> DiskFile:
        """The disk as an unbuffered binary file (io.RawIOBase) with a position of its own."""
        with self._requests:
            if self.writable:
                return DiskFile(self.path, self.size, self.readinto, self.write, self.flush)
            return DiskFile(self.path, self.size, self.readinto)

    def flush(self) -> None:
        """Return when all data that was written before is on stable storage."""
        with self._requests:
            if self._target is not None and os.getpid() == self._opener:
                self._target.flush()

    def close(self) -> None:
        """Close the image; an image that was written gets its footer. A second call does nothing.

        Requests of other threads end first. In a child process nothing is written: the process
        that opened the image still uses it.
        """
        resources = self._resources
        if resources is None:
            return
        if self.writable and os.getpid() != self._opener:
            self._resources = None
            self._requests = Requests(self.path, None, ended=True)
            resources.pop_all()
            return
        if not self._requests.end():
            return
        self._resources = None
        with resources:
            if self._target is not None:
                self._target.close()

    def __repr__(self) -> str:
        how = "closed" if self.closed else "writable" if self.writable else "read-only"
        return f"<vhdtool.Image {self.path!r}: {self.kind}, {self.size} bytes, {how}>"

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

    def __del__(self) -> None:
        if self._resources is not None:
            text = f"{self.path}: an image was never closed"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __reduce__(self) -> Never:
        raise TypeError(f"{self.path}: an open image cannot be pickled; open it in each process")


def _writer(storage: Storage, reader: Reader) -> "OpenDisk":
    # Imported late: opening for reading does not need the write path.
    from vhdtool.image.disk.open import build_disk

    admit_writer(storage, closed=False)
    parents = reader.layers[1:]
    return build_disk(storage, parent=_Parents(parents) if parents else None)


class _Parents(Reader):
    """The chain below an image that is written. Its opener closes it."""

    def close(self) -> None:
        """Leave the layers open."""


def open(
    source: Path | FileObject,
    writable: bool = False,
    *,
    parent: Image | None = None,
    force_epoch: int | None = None,
) -> Image:
    """Open a VHD with all its parents, for reading unless `writable`.

    `source` is a path, or a binary file object that can seek: the caller closes that, and must not
    use it meanwhile. A file object is written only if it has no file descriptor, as a BytesIO:
    others could not be locked. `parent` is the open parent of a child whose paths do not lead to
    it; a child in a file object needs it.

    For writing no other process may have the file open, by any name, nor a child of it, and it must
    have been closed. `force_epoch` takes over the lease of a host that is dead.
    Raises StorageError (with `errno`, and FileNotFoundError where it is one), NotAVhd, DamageError,
    UnsupportedImage or LockedError.
    """
    return Image(source, writable, parent=parent, force_epoch=force_epoch)
