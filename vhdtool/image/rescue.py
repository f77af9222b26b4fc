"""A new image or raw file from what can be trusted of a damaged one."""

import os
from dataclasses import replace

from vhdtool.image.convert import Format, cleared, require_not_over_layers
from vhdtool.image.create import check_size, create_dynamic, new_footer
from vhdtool.image.disk import DynamicDisk
from vhdtool.image.export import Progress
from vhdtool.image.journal import require_replaceable
from vhdtool.image.newfile import new_file
from vhdtool.image.salvage import Lost, Salvage, merged
from vhdtool.storage import FileStorage
from vhdtool.storage.kept import KeptOpen
from vhdtool.vhd.footer import FIXED
from vhdtool.vhd.units import DEFAULT_BLOCK, NO_OFFSET, pad


def rescue(
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
    require_not_over_layers(source.names, path)
    require_replaceable(path)
    size = pad(source.size)
    if target != "raw":
        size = check_size(size)
    with new_file(path, overwrite) as storage:
        cleared(storage, target, size)
        if target == "dynamic":
            create_dynamic(storage, size, block_bytes, batmap)
            return _fill(source, storage, progress)
        result = source.copy(storage, progress=progress)
        storage.truncate(size)
        if target == "fixed":
            storage.pwrite(size, replace(new_footer(size, FIXED), data_offset=NO_OFFSET).pack())
    return result


def _fill(
    source: Salvage, storage: FileStorage, progress: Progress | None
) -> tuple[int, list[Lost]]:
    copied, lost = 0, []
    disk = DynamicDisk(KeptOpen(storage))
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
    return copied, merged(iter(lost))
