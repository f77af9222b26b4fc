"""Creating images: empty ones, children, and copies in another format."""

from typing import Literal
from uuid import UUID

from vhdtool.errors import UnsupportedImage, UsageError
from vhdtool.image.api.image import Path
from vhdtool.image.chain.detect import guess_input
from vhdtool.image.chain.export import Progress
from vhdtool.image.chain.open import open_chain
from vhdtool.image.create.convert import Format
from vhdtool.image.create.convert import convert as convert_chain
from vhdtool.image.create.differencing import snapshot as create_snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.vhd.units import DEFAULT_BLOCK


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

    Raises UsageError for an impossible size, ImageExists, LockedError while a file to be replaced
    is in use, or StorageError.
    """
    if kind == "dynamic":
        return create_dynamic(path, size, block_bytes, batmap, overwrite=overwrite).uuid
    if kind == "fixed":
        return create_fixed(path, size, overwrite=overwrite).uuid
    raise UsageError(f"unknown kind {kind!r}: choose dynamic or fixed")


def snapshot(
    parent: Path, child: Path, *, raw_parent: bool = False, overwrite: bool = False
) -> UUID:
    """Create `child` over `parent`, which must not be written afterwards; returns the uuid.

    A parent that is itself a child without data is skipped. Raises UsageError when the chain would
    have more than 30 images, ImageExists, LockedError while the parent has a writer, or as `open`
    does.
    """
    footer, _ = create_snapshot(parent, child, raw=raw_parent, overwrite=overwrite)
    return footer.uuid


def convert(
    source: Path,
    target: Path,
    kind: Format = "dynamic",
    *,
    raw_source: bool = False,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Copy a disk to a new image without parents; returns its virtual size in bytes.

    The content of `source` decides whether it is a VHD or a raw disk, unless `raw_source` says
    that it is raw. Holes and blocks of zeros are not allocated. `progress` is called with the
    number of guest bytes done. The new file appears under its name only when it is complete.
    Raises UnsupportedImage for qcow2 and VHDX, UsageError, ImageExists, or as `open` does.
    """
    found = "raw" if raw_source else guess_input(source)
    if found not in ("vpc", "raw"):
        raise UnsupportedImage(
            f"{source}: is a {found} image; `vhdtool convert` reads it through qemu-img"
        )
    with open_chain(source, raw=found == "raw") as reader:
        return convert_chain(reader, target, kind, block_bytes, batmap, overwrite, progress)
