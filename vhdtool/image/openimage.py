"""An image of any kind, opened for reading and writing."""

from typing import Protocol

from vhdtool.image.blockreader import Parent
from vhdtool.image.chain import open_chain
from vhdtool.image.disk import DynamicDisk
from vhdtool.image.faithful import FaithfulDisk
from vhdtool.image.flat import FlatDisk
from vhdtool.image.hooks import Hooks
from vhdtool.image.journal import require_no_journal
from vhdtool.image.opened import FixedImage
from vhdtool.image.parents import find_parent
from vhdtool.storage import Storage
from vhdtool.vhd.header import NO_UUID, Header


class OpenImage(Protocol):
    """What a server needs of it. Offsets and lengths are bytes."""

    size: int

    @property
    def last_metadata(self) -> float | None: ...
    @property
    def truncated_to(self) -> int | None: ...

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes | memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def trim(self, offset: int, length: int) -> None: ...
    def prefetch(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]: ...
    def finish(self) -> bool: ...
    def abandon(self) -> None: ...


def open_image(
    storage: Storage,
    path: str,
    *,
    raw: bool = False,
    faithful: bool = False,
    unclean: bool = False,
    kill_footer: bool = False,
    preallocate: bool = True,
    whole: bool = False,
    hooks: Hooks | None = None,
) -> OpenImage:
    """The image in `storage`, which is the file at `path`: parents are looked for beside it.

    The options are those of DynamicDisk and FaithfulDisk.

    Raises NotAVhd, CorruptImage, UnsupportedImage, UncleanImage, StorageError.
    """
    if raw:
        return FlatDisk(storage, raw=True)

    def parent(header: Header) -> Parent:
        return open_chain(find_parent(path, storage, header), raw=header.parent_uuid == NO_UUID)

    try:
        if faithful:
            return FaithfulDisk(
                storage,
                kill_footer=kill_footer,
                preallocate=preallocate,
                hooks=hooks,
                parent=parent,
            )
        require_no_journal(path)
        return DynamicDisk(storage, unclean=unclean, hooks=hooks, parent=parent, whole=whole)
    except FixedImage:
        return FlatDisk(storage)
