"""Opening an image together with all its parents."""

import os

from vhdtool.errors import CorruptImage
from vhdtool.image.chain.layers import Layer, Reader
from vhdtool.image.chain.locate_parent import find_parent
from vhdtool.image.check.admission import readable
from vhdtool.image.journal.transaction import require_no_journal
from vhdtool.image.metadata.read import read_metadata
from vhdtool.leases.claim import share
from vhdtool.storage import FileStorage
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import NO_UUID

MAX_DEPTH = 30
"""Layers that the storage manager allows; deeper chains are read, and `check` reports them."""
HARD_LIMIT = 1000
NONE, PARENTS, ALL = range(0), range(1, HARD_LIMIT), range(HARD_LIMIT)
"""Depths of layers: none, those of the parents, all."""


class ParentLoop(CorruptImage):
    """Raised when an image is its own ancestor."""


def open_chain(
    path: str | os.PathLike[str],
    raw: bool = False,
    without_parents: bool = False,
    metadata_only: bool = False,
    lock: range = NONE,
) -> Reader:
    """Open `path` and its parents for reading, none of which may be damaged.

    `raw`: the file is a raw disk; `metadata_only`: damaged images are opened, too, and their data
    must not be read. The layers at the depths of `lock` are locked against writers until they are
    closed.
    Raises NotAVhd, CorruptImage (ParentMissing, ParentMismatch, ParentLoop), UncleanImage where a
    change was interrupted, ImageInUse while a layer to be locked has a writer, or StorageError.
    """
    layers: list[Layer] = []
    seen: set[tuple[int, int]] = set()
    current = os.fspath(path)
    try:
        while True:
            storage = FileStorage(current)
            layers.append(Layer(storage))
            _require_unseen(storage, seen)
            if len(layers) - 1 in lock:
                # Locked before its metadata is read, so that it cannot change afterwards.
                share(storage)
            if raw:
                break
            if not metadata_only:
                require_no_journal(current)
            metadata = read_metadata(storage) if metadata_only else readable(storage)
            layers[-1] = Layer(storage, metadata)
            header = metadata.header
            if without_parents or metadata.footer.disk_type != DIFFERENCING or header is None:
                break
            if len(layers) >= HARD_LIMIT:
                raise CorruptImage(f"{path}: more than {HARD_LIMIT} layers")
            current = find_parent(current, storage, header)
            raw = header.parent_uuid == NO_UUID
    except BaseException:
        for layer in layers:
            layer.close()
        raise
    return Reader(layers)


def _require_unseen(storage: FileStorage, seen: set[tuple[int, int]]) -> None:
    """Raise ParentLoop for a file that was opened already; else remember it."""
    status = os.fstat(storage.fileno())
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        raise ParentLoop(
            f"{storage.name}: the chain of parents returns to this file; set the right parent "
            "with `vhdtool modify --parent`"
        )
    seen.add(identity)
