"""Standard input, output and error of a program: closed, gone or full; an image that comes in."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from vhdtool.errors import UsageError, VhdtoolError

_CHUNK = 1 << 20
_ZEROS = bytes(64 << 10)
_NAME = "standard input"


def open_missing() -> None:
    """Open /dev/null in place of each standard stream that the caller has closed.

    Otherwise the next file to be opened, an image for example, would get its descriptor, and a
    child process would print into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free descriptor: that of the stream, as the lower ones are open by now.
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: SIM115


def run_and_flush(run: Callable[[], int], name: str, exit_code: Callable[[OSError], int]) -> int:
    """Run a program and flush its output; return its exit code.

    Where the output cannot be written and the program has not failed, that is `exit_code`'s. If the
    reader has gone (`... | head`), nothing is printed.
    """
    code = 0
    try:
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        code = exit_code(error)
    except OSError as error:
        if not code:
            print(f"{name}: standard output: {error.strerror}", file=sys.stderr)
            code = exit_code(error)
    # What is still buffered would fail again when Python ends.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


@contextmanager
def input_path(path: str, folder: str) -> Iterator[str]:
    """The path of an input file; `-` stands for the file that is standard input.

    What comes through a pipe is copied first, without its zeros, to a file without a name in
    `folder`: nothing of it stays, however the program ends.
    Raises UsageError where standard input has no data or cannot be copied.
    """
    if path != "-":
        yield path
        return
    if sys.stdin.isatty():
        raise UsageError("-: standard input is a terminal; send an image to it")
    if (named := _path_of_standard_input()) is not None:
        yield named
        return
    with _copy_of_standard_input(folder) as copy:
        # Of this process, for children such as qemu-img.
        name = f"/proc/{os.getpid()}/fd/{copy.fileno()}"
        try:
            yield name
        except VhdtoolError as error:
            raise VhdtoolError(str(error).replace(name, _NAME)) from None


def _path_of_standard_input() -> str | None:
    """The path of the file or device that is standard input, unless it has been read already."""
    status = os.fstat(0)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return None
    if os.lseek(0, 0, os.SEEK_CUR):
        return None
    path = os.readlink("/proc/self/fd/0")
    return path if os.path.exists(path) and os.path.samefile(path, "/dev/stdin") else None


def _copy_of_standard_input(folder: str) -> BinaryIO:
    import tempfile  # late: most commands do not need it

    try:
        copy = tempfile.TemporaryFile(dir=folder, prefix=".stdin.")  # noqa: SIM115 - is returned
        size = _copy_without_zeros(copy)
    except OSError as error:
        raise UsageError(f"{folder}: cannot hold a copy of {_NAME}: {error.strerror}") from None
    if not size:
        raise UsageError(f"{_NAME}: is empty")
    return copy


def _copy_without_zeros(copy: BinaryIO) -> int:
    """Copy to the end of the input; return the number of bytes."""
    size = 0
    while chunk := sys.stdin.buffer.read(_CHUNK):
        for at in range(0, len(chunk), len(_ZEROS)):
            part = chunk[at : at + len(_ZEROS)]
            if part != _ZEROS[: len(part)]:
                copy.seek(size + at)
                copy.write(part)
        size += len(chunk)
    copy.truncate(size)
    copy.flush()
    return size
