"""Reads the files of a record: only regular files, up to a size, never through a symbolic link.

A record is untrusted input. A FIFO would block the judge for ever, a device or a link to one would
fill its memory, and a link out of the record is not part of it.
"""

import errno
import os
import stat
from pathlib import Path

from vhdtool.oracle.evidence.json_fields import TornRecord

LARGEST_FILE = 64 << 20
"""Bytes; the limit for every file of a record but the image."""
LARGEST_IMAGE = 4 << 40
"""Bytes; twice the largest VHD. An image is read in small parts, whatever its size."""
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY


def open_regular(path: Path, most: int) -> int:
    """Opens a regular file of at most `most` bytes, without blocking. Returns the descriptor.

    Raises TornRecord, without the file's name, for anything else.
    """
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        raise TornRecord(_why(error)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise TornRecord("not a regular file")
        if status.st_size > most:
            raise TornRecord(f"{status.st_size} bytes, more than {most >> 20} MiB")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _why(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "missing"
    if error.errno == errno.ELOOP:
        return "a symbolic link; the files of a record are regular files"
    if error.errno == errno.ENXIO:
        return "not a regular file"
    return f"cannot be read ({error.strerror})"


def read_file(path: Path, most: int = LARGEST_FILE) -> bytes:
    """Reads a file. Raises TornRecord, without the file's name, if it cannot be read."""
    fd = open_regular(path, most)
    try:
        with os.fdopen(fd, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise TornRecord(_why(error)) from error
    if len(data) > most:
        raise TornRecord(f"more than {most >> 20} MiB")
    return data


def names_in(folder: Path, most: int = 4096) -> list[str]:
    """The names in a directory, sorted; empty if it is not a directory, or a symbolic link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) >= most:
                    break
    except OSError:
        return []
    return sorted(names)
