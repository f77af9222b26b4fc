"""A new image or raw file from what can be trusted of a damaged one."""

import os

from vhdtool.image.chain.export import Progress
from vhdtool.image.create.convert import Format, finish_flat, target_file
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.salvage.reader import Lost, Salvage, merged
from vhdtool.storage import FileStorage
from vhdtool.storage.base import BorrowedStorage
from vhdtool.vhd.units import DEFAULT_BLOCK


def convert_salvaged(
    source: Salvage,
    path: str | os.PathLike[str],
    target: Format,
    block_bytes: int = DEFAULT_BLOCK,
    batmap: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[int, list[Lost]]:
    """Writes all that can be trusted to a new file, and zeros for the rest.

    Returns the bytes that were copied, and what was lost. Raises as `convert` does.
    """
    with target_file(source.names, path, target, source.size, overwrite) as (storage, size):
        if target == "dynamic":
            create_dynamic(storage, size, block_bytes, batmap)
            return _fill(source, storage, progress)
        result = source.copy(storage, progress=progress)
        finish_flat(storage, target, size)
    return result


def _fill(
    source: Salvage, storage: FileStorage, progress: Progress | None
) -> tuple[int, list[Lost]]:
    copied, lost = 0, []
    disk = DynamicDisk(BorrowedStorage(storage))
    for piece in source.data():
        if isinstance(piece, Lost):
            lost.append(piece)
            continue
        start, data = piece
        if any(data):
            disk.write(start, data)
        copied += len(data)
        if progress is not None:
            progress(start)
    disk.close()
    return copied, merged(lost)
