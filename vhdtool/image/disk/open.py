"""An image of any kind, opened for reading and writing."""

import os

from vhdtool.errors import NotAVhd, UsageError, damaged
from vhdtool.image.chain.detect import identify
from vhdtool.image.disk.base import Hooks, OpenDisk, Parent
from vhdtool.image.disk.dynamic import DynamicDisk, FindParent
from vhdtool.image.disk.flat import FlatDisk
from vhdtool.image.disk.policy import WritePolicy
from vhdtool.image.journal.transaction import require_no_journal
from vhdtool.image.metadata.ends import read_ends
from vhdtool.image.metadata.qcow2 import read_header
from vhdtool.image.metadata.read import FixedImage
from vhdtool.image.metadata.signatures import description
from vhdtool.storage import Storage
from vhdtool.storage.paths import open_storage
from vhdtool.vhd.header import NO_UUID, Header
from vhdtool.vhd.units import raw_disk_size

VHD, RAW, QCOW2 = "vhd", "raw", "qcow2"
KINDS = (VHD, RAW, QCOW2)


def open_disk(
    storage: Storage,
    path: str,
    *,
    kind: str = VHD,
    exclusive: bool = True,
    unclean: bool = False,
    whole: bool = False,
    hooks: Hooks | None = None,
    policy: WritePolicy | None = None,
) -> OpenDisk:
    """Open the image in `storage`, which is the file at `path`: parents are looked for beside it.

    `kind` is one of KINDS. `exclusive`: nobody may write the parents as long as the image is open,
    and QEMU's lock is taken on a qcow2 image. The other options are those of DynamicDisk. With a
    `policy` of its own a dynamic image is opened whether a journal lies beside it or not.

    Raises ImageInUse, NotAVhd, CorruptImage, UnsupportedImage, UncleanImage, StorageError.
    """
    if kind == QCOW2:
        # Imported late, with what a child process needs.
        from vhdtool.image.disk.qcow2 import Qcow2Disk

        return Qcow2Disk(storage, exclusive=exclusive, hooks=hooks)

    def parent(header: Header) -> Parent:
        # Imported late: most images have no parent, and start sooner without.
        from vhdtool.image.chain.locate_parent import find_parent
        from vhdtool.image.chain.open import ALL, NONE, open_chain

        raw = header.parent_uuid == NO_UUID
        below = find_parent(path, storage, header)
        return open_chain(below, raw=raw, lock=ALL if exclusive else NONE)

    if policy is None and kind == VHD:
        require_no_journal(path)
    return build_disk(
        storage,
        raw=kind == RAW,
        unclean=unclean,
        hooks=hooks,
        parent=parent,
        whole=whole,
        policy=policy,
    )


def build_disk(
    storage: Storage,
    *,
    raw: bool = False,
    unclean: bool = False,
    hooks: Hooks | None = None,
    parent: Parent | FindParent | None = None,
    whole: bool = False,
    policy: WritePolicy | None = None,
) -> DynamicDisk | FlatDisk:
    """Open a VHD of any kind, or a raw disk, over a parent that is known.

    Raises NotAVhd, CorruptImage, UnsupportedImage, UncleanImage, StorageError.
    """
    if raw:
        return FlatDisk(storage, raw=True)
    try:
        return DynamicDisk(
            storage, unclean=unclean, hooks=hooks, parent=parent, whole=whole, policy=policy
        )
    except FixedImage:
        return FlatDisk(storage)


def kind_of(path: str | os.PathLike[str]) -> str:
    """Detect whether the file is a VHD or qcow2; raw cannot be detected.

    Raises NotAVhd, UsageError or StorageError.
    """
    with open_storage(path) as storage:
        found = identify(storage, ("qcow2",))
        if found is None:
            raise NotAVhd(
                f"{path}: is neither VHD nor qcow2; {description(storage)}; "
                "`--format raw` takes the file as a raw disk"
            )
        return QCOW2 if found == "qcow2" else VHD


def disk_size(path: str | os.PathLike[str], kind: str) -> int:
    """Read the disk's size in bytes.

    Raises NotAVhd, CorruptImage, UnsupportedImage or StorageError.
    """
    if kind not in KINDS:
        raise UsageError(f"format {kind!r} is none of {', '.join(KINDS)}")
    with open_storage(path) as storage:
        if kind == RAW:
            return raw_disk_size(storage.size())
        if kind == QCOW2:
            return read_header(storage).size
        footer = read_ends(storage).best
        if footer is None:
            raise damaged(os.fspath(path), "neither footer is valid")
        return footer.current_size
