"""Where an image's epoch record is: beside the real file, whatever name leads to it.

A record elsewhere (`--record`) is remembered beside the image where a file can be made there, so
that two users of one image never go by two records.
"""

import json
import os
import stat
from contextlib import suppress
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.storage.paths import persistent_path

SUFFIX = ".lease"
_LARGEST_POINTER = 8192


def record_beside(image: str | os.PathLike[str]) -> Path:
    """The default: the real file's path, with a suffix. Raises UsageError for a directory."""
    if os.path.isdir(image):
        raise UsageError(f"{os.fspath(image)}: is a directory; name an image")
    return Path(persistent_path(image) + SUFFIX)


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
    _require_another_file(wanted, image)
    if known is None and wanted != beside and _has_content(beside):
        raise UsageError(
            f"{os.fspath(image)}: its epoch record is {beside}; --record cannot name another"
        )
    return wanted


def remember_record(image: str | os.PathLike[str], record: Path) -> None:
    """Leaves word beside an image that its record is elsewhere; for who is let in, not before.

    Raises UsageError when the image has another record by now.
    """
    beside = record_beside(image)
    if record != beside:
        _point(beside, record)
    record_of(image, record)


def existing_record(image: str | os.PathLike[str]) -> Path | None:
    """The record of an image that has been served; None for one that has no record."""
    beside = record_beside(image)
    known = _pointed(beside)
    if known is None:
        return beside if os.path.lexists(beside) else None
    _require_another_file(known, image)
    return known


def _require_another_file(record: Path, image: str | os.PathLike[str]) -> None:
    """A raw disk that begins with zeros would pass for a new record."""
    with suppress(OSError):
        if os.path.samefile(record, image):
            raise UsageError(f"{record}: is the image itself, and cannot be its epoch record")


def _has_content(record: Path) -> bool:
    try:
        return record.stat().st_size > 0
    except OSError:
        return False


def _pointed(beside: Path) -> Path | None:
    """The record that the file beside an image names. Raises UsageError when it names no path."""
    try:
        said = json.loads(_first_line(beside))["record"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(said, str) or not os.path.isabs(said) or "\0" in said:
        raise UsageError(
            f"{beside}: should name the epoch record by an absolute path; if nobody uses the "
            "image, remove this file"
        )
    return Path(said)


def _first_line(path: Path) -> bytes:
    """That of a small file; nothing of a large one, which is a record. Raises OSError."""
    # A pipe of that name must not hold anybody up.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_POINTER:
            return b""
        return os.read(fd, _LARGEST_POINTER).split(b"\n")[0]
    finally:
        os.close(fd)


def _point(beside: Path, record: Path) -> None:
    # A directory that nobody can write to remembers nothing; the lock on the image excludes still.
    part = beside.with_name(f"{beside.name}.{os.getpid()}")
    with suppress(OSError):
        try:
            part.write_text(json.dumps({"record": str(record)}) + "\n")
            os.link(part, beside)
        finally:
            part.unlink(missing_ok=True)
