"""The location of an image's epoch record: beside the real file, by whatever path it is opened.

For a record elsewhere (`--record`) a pointer file beside the image names it, where a file can be
made there, so that two users of one image never use two records.
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
    """Returns the default location: the real file's path and a suffix.

    Raises UsageError for a directory.
    """
    if os.path.isdir(image):
        raise UsageError(f"{os.fspath(image)}: is a directory; name an image")
    return Path(persistent_path(image) + SUFFIX)


def record_of(image: str | os.PathLike[str], named: Path | None = None) -> Path:
    """Returns the record to use: `named`, or the one beside the image.

    Raises UsageError when the image has another record.
    """
    beside = record_beside(image)
    known = _read_pointer(beside)
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


def remember_record(image: str | os.PathLike[str], record: Path) -> bool:
    """Writes a pointer beside an image whose record is elsewhere; returns whether it did.

    Call it with the image locked. Raises UsageError when the image has another record by now.
    """
    beside = record_beside(image)
    wrote = record != beside and _write_pointer(beside, record)
    record_of(image, record)
    return wrote


def forget_record(image: str | os.PathLike[str], record: Path) -> None:
    """Removes the pointer that `remember_record` wrote."""
    beside = record_beside(image)
    with suppress(OSError, UsageError):
        if _read_pointer(beside) == record:
            beside.unlink()


def existing_record(image: str | os.PathLike[str]) -> Path | None:
    """Returns the record of an image that has been served, else None."""
    beside = record_beside(image)
    known = _read_pointer(beside)
    if known is None:
        return beside if os.path.lexists(beside) else None
    _require_another_file(known, image)
    return known


def _require_another_file(record: Path, image: str | os.PathLike[str]) -> None:
    """A raw disk that begins with zeros looks like a new record."""
    with suppress(OSError):
        if os.path.samefile(record, image):
            raise UsageError(f"{record}: is the image itself, and cannot be its epoch record")


def _has_content(record: Path) -> bool:
    try:
        return record.stat().st_size > 0
    except OSError:
        return False


def _read_pointer(beside: Path) -> Path | None:
    """Returns the record that a pointer names; None for a file that is not a pointer.

    Raises UsageError for a pointer without an absolute path.
    """
    try:
        named = json.loads(_first_line(beside))["record"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(named, str) or not os.path.isabs(named) or "\0" in named:
        raise UsageError(
            f"{beside}: should name the epoch record by an absolute path; if nobody uses the "
            "image, remove this file"
        )
    return Path(named)


def _first_line(path: Path) -> bytes:
    """Returns the first line of a small file; b"" for a large one, a record. Raises OSError."""
    # O_NONBLOCK: a pipe of that name must not block.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_POINTER:
            return b""
        return os.read(fd, _LARGEST_POINTER).split(b"\n")[0]
    finally:
        os.close(fd)


def _write_pointer(beside: Path, record: Path) -> bool:
    # In a directory that cannot be written there is no pointer; the image lock still excludes.
    part = beside.with_name(f"{beside.name}.{os.getpid()}")
    with suppress(OSError):
        try:
            part.write_text(json.dumps({"record": str(record)}) + "\n")
            os.link(part, beside)
            return True
        finally:
            part.unlink(missing_ok=True)
    return False
