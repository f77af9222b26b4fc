"""The cache of disk images and snapshots: one writer at a time, whole directories or nothing."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vhdtool.errors import LabError

_UNFINISHED = "building-"
Progress = Callable[[str], None]


@contextlib.contextmanager
def locked(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache for writing, and remove what a killed writer has left.

    Several checkouts have one cache. Raises LabError if it cannot be made or written.
    """
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"{cache}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another lab, which builds or boots the machines")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for stale in cache.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(stale)
        yield
    except OSError as error:
        raise LabError(f"{error.filename or cache}: {error.strerror}") from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def building(target: Path, bytes_needed: int) -> Iterator[Path]:
    """A scratch directory; what is in its `made` becomes `target` at the end.

    The cache is locked. Raises LabError if fewer bytes are free.
    """
    free = shutil.disk_usage(target.parent).free
    if free < bytes_needed:
        raise LabError(
            f"{target.parent}: {free >> 20} MiB free, {bytes_needed >> 20} needed; make room"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_UNFINISHED) as text:
        made = Path(text) / "made"
        made.mkdir(mode=0o700)
        yield Path(text)
        made.replace(target)
