"""Where an image's epoch record is: beside the real file, whatever name leads to it.

A record elsewhere (`--record`) is remembered beside the image where a file can be made there, so
that two users of one image never go by two records.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.storage.names import lasting_path

SUFFIX = ".lease"
_LARGEST_POINTER = 8192


def record_beside(image: str | os.PathLike[str]) -> Path:
    """The default: the real file's path, with a suffix. Raises UsageError for a directory."""
    if os.path.isdir(image):
        raise UsageError(f"{os.fspath(image)}: is a directory; name an image")
    return Path(lasting_path(image) + SUFFIX)


def record_of(image: str | os.PathLike[str], named: Path | None = None) -> Path:
    """The record to use; `named` by the caller, or the one beside the image.

    Raises UsageError when the image has its record elsewhere.
    """
    beside = record_beside(image)
    known = _pointed(beside)
    wanted = beside if named is None else Path(os.path.realpath(named))
    if known is not None and wanted != known:
        raise UsageError(
            f"{os.fspath(image)}: its epoch record is {known}; name that one with --record"
        )
    if known is None and wanted != beside:
        if _has_content(beside):
            raise UsageError(
                f"{os.fspath(image)}: its epoch record is {beside}; --record cannot name another"
            )
        _point(beside, wanted)
    return wanted


def existing_record(image: str | os.PathLike[str]) -> Path | None:
    """The record of an image that has been served; None for one that has no record."""
    beside = record_beside(image)
    if (known := _pointed(beside)) is not None:
        return known
    return beside if beside.exists() else None


def _has_content(record: Path) -> bool:
    try:
        return record.stat().st_size > 0
    except OSError:
        return False


def _pointed(beside: Path) -> Path | None:
    """The record that the file beside an image names."""
    try:
        if beside.stat().st_size > _LARGEST_POINTER:
            return None
        said = json.loads(beside.read_bytes().split(b"\n")[0])
        return Path(said["record"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _point(beside: Path, record: Path) -> None:
    # A directory that nobody can write to remembers nothing; the lock on the image excludes still.
    part = beside.with_name(f"{beside.name}.{os.getpid()}")
    with suppress(OSError):
        try:
            part.write_text(json.dumps({"record": str(record)}) + "\n")
            os.link(part, beside)
        finally:
            part.unlink(missing_ok=True)
