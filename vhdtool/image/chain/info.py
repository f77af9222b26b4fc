"""Every field of an image and its chain, as JSON types."""

import os
from datetime import UTC, datetime
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.locate_parent import find_parent, locator_paths
from vhdtool.image.metadata.read import Metadata, read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.creators import creator_name, host_name, size_for_qemu
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import NO_UUID
from vhdtool.vhd.units import UNUSED, unix_time


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Footer, header, locators, batmap and chain of the image at `path`.

    Raises NotAVhd, CorruptImage where the metadata cannot be used, or StorageError.
    """
    name = os.fspath(path)
    with FileStorage(name) as storage:
        meta = read_metadata(storage)
        disk = os.fstat(storage.fileno()).st_blocks * 512
        result: dict[str, Any] = {
            "image": name,
            "type": meta.footer.type_name,
            "virtual_size": meta.size,
            "file_size": meta.ends.file_size,
            "disk_size": disk,
            "created": time_text(meta.footer.timestamp),
            "creator": creator_name(meta.footer),
            "creator_host": host_name(meta.footer),
            "size_for_qemu": size_for_qemu(meta.footer),
            "closed": meta.ends.footer is not None and meta.ends.footer.valid,
            "footer_killed": meta.ends.killed,
            "footer": {**meta.footer.as_dict(), "reserved_zero": not any(meta.footer.reserved)},
            "header": meta.header.as_dict() if meta.header is not None else None,
            "batmap": meta.batmap.as_dict() if meta.batmap is not None else None,
        }
        if meta.header is not None:
            result["blocks"] = len(meta.bat)
            result["allocated"] = sum(1 for entry in meta.bat if entry != UNUSED)
        if meta.footer.disk_type == DIFFERENCING and meta.header is not None:
            result["locators"] = [
                {"code": code, "path": path} for code, path in locator_paths(storage, meta.header)
            ]
            result["parent_changed"] = time_text(meta.header.parent_timestamp)
            result["chain"] = _chain(name, storage, meta)
    return result


def _chain(name: str, storage: FileStorage, meta: Metadata) -> list[dict[str, Any]]:
    """The parents, nearest first; where the chain is broken the last one has the error."""
    assert meta.header is not None
    try:
        nearest = find_parent(name, storage, meta.header)
    except VhdtoolError as error:
        return [{"image": None, "error": str(error)}]
    # Imported here for the start-up time of `vhdtool info`: only a child needs it.
    from vhdtool.image.chain.open import open_chain

    try:
        with open_chain(
            nearest, raw=meta.header.parent_uuid == NO_UUID, metadata_only=True
        ) as reader:
            return [
                {
                    "image": layer.name,
                    "type": layer.metadata.footer.type_name if layer.metadata else "raw",
                    "uuid": str(layer.metadata.footer.uuid) if layer.metadata else None,
                    "virtual_size": layer.size,
                }
                for layer in reader.layers
            ]
    except VhdtoolError as error:
        return [{"image": nearest, "error": str(error)}]


def time_text(seconds: int) -> str:
    """A VHD time in ISO 8601, UTC."""
    return datetime.fromtimestamp(unix_time(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
