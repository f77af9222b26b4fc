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
"""Layers that SM allows; deeper chains are read, and `check` names them."""
HARD_LIMIT = 1000
NONE, PARENTS, ALL = range(0), range(1, HARD_LIMIT), range(HARD_LIMIT)
"""Layers, counted from the image itself: none, all but the image, all."""


class ParentLoop(CorruptImage):
    """An image is its own ancestor."""


def open_chain(
    path: str | os.PathLike[str],
    raw: bool = False,
    alone: bool = False,
    names_only: bool = False,
    hold: range = NONE,
) -> Reader:
    """Opens `path` and its parents for reading, none of which may be damaged.

    `raw`: the file is no VHD but a disk as it is; `alone`: without parents. With `names_only`
    damaged images are opened too, as far as their metadata can be read: their data must not be.
    Nobody may write the layers of `hold` until they are closed.
    Raises NotAVhd, CorruptImage (ParentMissing, ParentMismatch, ParentLoop), UncleanImage where
    a change was interrupted, ImageInUse while somebody writes what is to be held, or StorageError.
    """
    layers: list[Layer] = []
    seen: set[tuple[int, int]] = set()
    current = os.fspath(path)
    try:
        while True:
            storage = FileStorage(current)
            layers.append(Layer(storage))
            _remember(storage, seen)
            if len(layers) - 1 in hold:
                # Before its metadata are read, which must stay as they are.
                share(storage)
            if raw:
                break
            if not names_only:
                require_no_journal(current)
            metadata = read_metadata(storage) if names_only else readable(storage)
            layers[-1] = Layer(storage, metadata)
            header = metadata.header
            if alone or metadata.footer.disk_type != DIFFERENCING or header is None:
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


def _remember(storage: FileStorage, seen: set[tuple[int, int]]) -> None:
    status = os.fstat(storage.fileno())
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        raise ParentLoop(
            f"{storage.name}: the chain of parents comes back to this file; set the right parent "
            "with `vhdtool modify --parent`"
        )
    seen.add(identity)
