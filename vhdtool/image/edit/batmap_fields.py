"""The marker and the key hash that blktap stores in the batmap's header.

An image without a batmap has neither. (blktap then uses extended attributes, this package not.)
"""

import os
from dataclasses import dataclass, replace

from vhdtool.errors import UnsupportedImage, UsageError
from vhdtool.image.check.admission import changeable
from vhdtool.image.journal.transaction import apply_journalled, change_journal_path, writable_image
from vhdtool.image.journal.undo import Change
from vhdtool.image.metadata.read import Metadata
from vhdtool.storage.image_lock import LockMode
from vhdtool.vhd.units import UNUSED

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class BatmapFields:
    """Marker and key. `key` is (nonce, hash), 32 bytes each; None where not encrypted."""

    marker: int = 0
    key: tuple[bytes, bytes] | None = None


def read_batmap_fields(meta: Metadata) -> BatmapFields:
    """The fields of an image; the defaults where there is no batmap."""
    if meta.batmap is None:
        return BatmapFields()
    key = (meta.batmap.key_nonce, meta.batmap.key_hash) if meta.batmap.key_set == 1 else None
    return BatmapFields(meta.batmap.marker, key)


def set_marker(
    path: str | os.PathLike[str], marker: int, mode: LockMode = LockMode.EXCLUSIVE
) -> None:
    """Set the marker (0 to 255). Raises UnsupportedImage without a batmap, UsageError."""
    if not 0 <= marker <= 255:
        raise UsageError(f"a marker of {marker} is impossible: choose 0 to 255")
    _change(path, mode, marker=marker)


def set_key(path: str | os.PathLike[str], digest: bytes, nonce: bytes = bytes(KEY_BYTES)) -> None:
    """Store the hash of the key with which an empty image will be encrypted.

    Raises UsageError for a hash or nonce that is not 32 bytes, or an image that has data.
    """
    if len(digest) != KEY_BYTES or len(nonce) != KEY_BYTES:
        raise UsageError(f"hash and nonce must have {KEY_BYTES} bytes each")
    _change(path, LockMode.EXCLUSIVE, key_set=1, key_nonce=nonce, key_hash=digest)


def _change(path: str | os.PathLike[str], mode: LockMode, **fields: int | bytes) -> None:
    with writable_image(path, mode) as storage:
        meta = changeable(storage, closed=False)
        if meta.batmap is None or meta.header is None:
            raise UnsupportedImage(f"{storage.name}: has no batmap, in which this would be stored")
        if "key_set" in fields and any(entry != UNUSED for entry in meta.bat):
            raise UsageError(f"{storage.name}: already has data, which is not encrypted")
        raw = replace(meta.batmap, **fields).pack()  # type: ignore[arg-type]
        change = Change("write the batmap's header", meta.header.bat_end, raw)
        apply_journalled(storage, change_journal_path(path), [change])
