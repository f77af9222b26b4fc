"""The minors of a control directory: files `tapdisk-<n>`, as blktap makes without its module."""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vhdtool.errors import VhdtoolError

MOST_MINORS = 16384


class TapctlError(VhdtoolError):
    """`errno` is the command's exit code; `why` explains it where the errno does not, or is ""."""

    errno: int

    def __init__(self, number: int, doing: str, why: str = "") -> None:
        super().__init__(f"{doing}: {why or os.strerror(number)}")
        self.errno = number
        self.why = why


class MinorFiles:
    """The minors in `folder`. All methods but `all` raise TapctlError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def allocate(self) -> tuple[int, Path]:
        """Takes the lowest free minor; returns it and its file."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.folder):
                for minor in range(MOST_MINORS):
                    path = self.folder / f"tapdisk-{minor}"
                    with contextlib.suppress(FileExistsError):
                        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                        return minor, path
        except OSError as error:
            raise TapctlError(error.errno or errno.EIO, str(self.folder)) from None
        raise TapctlError(errno.ENOSPC, str(self.folder), "no minor is free")

    def free(self, minor: int) -> None:
        """Removes the file of a minor that no tapdisk has attached."""
        path = self.folder / f"tapdisk-{minor}"
        try:
            with _locked(self.folder), open(path) as marker:
                # The tapdisk that it is attached to holds this lock.
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError as error:
            raise TapctlError(error.errno or errno.EIO, str(path)) from None

    def all(self) -> list[int]:
        """Returns the minors that are taken."""
        return numbers(self.folder, r"tapdisk-(\d+)")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def numbers(folder: Path, pattern: str) -> list[int]:
    """Returns the numbers in matching names, in the order of the names, as blktap's tool does."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [int(match[1]) for name in names if (match := re.fullmatch(pattern, name))]
