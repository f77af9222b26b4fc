"""Examining images: check, fields, map, and the data of a damaged one."""

from typing import Any

from vhdtool.errors import UsageError
from vhdtool.image.api.image import Path
from vhdtool.image.chain.check import ChainReport, check_chain
from vhdtool.image.chain.info import info as image_info
from vhdtool.image.chain.layers import Extent
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.image import Mode
from vhdtool.image.salvage.damage import Damage, find_damage
from vhdtool.image.salvage.open import open_salvage
from vhdtool.image.salvage.reader import Salvage


def check(
    path: Path, mode: Mode = "strict", *, bitmaps: bool = True, parents: bool = True
) -> ChainReport:
    """Check an image and its parents; writes nothing.

    The report has `consistent`, `verdict`, `exit_code` and the findings. It has no truth value, so
    that `if check(path):` cannot be misread. Raises NotAVhd, UsageError or StorageError when the
    check cannot be done.
    """
    return check_chain(path, mode, bitmaps, parents)


def info(path: Path) -> dict[str, Any]:
    """Every field of an image's metadata, and its chain: what `vhdtool info --json` prints.

    Raises NotAVhd, CorruptImage where the metadata cannot be used, or StorageError.
    """
    return image_info(path)


def map(path: Path, start: int = 0, end: int | None = None) -> list[Extent]:
    """The extents of guest bytes [start, end), in order, neighbours merged.

    One whose `offset` is None is in no layer, and reads as zeros. `depth` is an index of
    `Image.chain`. Raises UsageError, or as `open` does.
    """
    if start < 0:
        raise UsageError(f"{path}: cannot begin at {start}")
    with open_chain(path) as reader:
        return list(reader.merged(start, end))


def salvage(path: Path, *, place_orphans: bool = False) -> Salvage:
    """Open a damaged image that `open` refuses, with the parents that can be found.

    A context manager: it reads what can be trusted and lists what is lost. A lost header or BAT is
    replaced in memory where the rest of the image proves it. `place_orphans` reads orphan blocks
    where they probably were, which is a guess. Raises NotAVhd, StorageError, or CorruptImage when
    no block can be located.
    """
    return open_salvage(path, place_orphans)


def damage(path: Path, *, files: bool = True) -> Damage:
    """Find the guest sectors, partitions and files that damage affects; writes nothing.

    Names of files need the extra `vhdtool[damage]`; without it, or without `files`, there are none.
    The report has no truth value: `lost`, `orphans` and `notes` are empty where there is no damage.
    Raises as `salvage` does.
    """
    return find_damage(path, files)
