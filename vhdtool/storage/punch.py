"""Holes: the one system call that Python's os module lacks."""

import errno
import functools
import os
from collections.abc import Callable
from typing import Any

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EPERM)


@functools.cache
def _fallocate() -> tuple[Callable[..., Any], Callable[[], int]] | None:
    # Imported late: ctypes costs some milliseconds that `vhdtool info` does not have.
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call, ctypes.get_errno


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Deallocates a range, which then reads as zeros; False where that cannot be done.

    Raises OSError when it could be done and failed.
    """
    found = _fallocate()
    if found is None:
        return False
    call, get_errno = found
    if call(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0:
        return True
    number = get_errno()
    # A block device takes whole blocks of its own only.
    if number in (*_UNABLE, errno.EINVAL):
        return False
    raise OSError(number, "fallocate")


def preallocate(fd: int, end: int) -> bool:
    """Sets space aside up to byte `end`, behind the file's end too; its length stays.

    False where the file system cannot do that. Raises OSError when there is no space.
    """
    found = _fallocate()
    if found is None:
        return False
    call, get_errno = found
    if call(fd, _KEEP_SIZE, 0, end) == 0:
        return True
    number = get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number))
