"""Standard input, output and error of a program: closed by its caller, gone, or full."""

import os
import sys
from collections.abc import Callable


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
