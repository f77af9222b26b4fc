"""Arguments, numbers and errors as blktap's tool has them; errors are an errno."""

import errno
import getopt
import re
import sys
from typing import TYPE_CHECKING

from vhdtool.errors import ActivationRefused, ImageExists, VhdtoolError
from vhdtool.vhd.units import DEFAULT_BLOCK

if TYPE_CHECKING:
    from vhdtool.image.metadata.read import Metadata
    from vhdtool.storage import FileStorage

Options = dict[str, str]
"""Letter of an option (without its dash) -> its value, or "" for a flag."""
_NUMBER = re.compile(r"\s*(\d+)")


class WrongArguments(Exception):
    """Wrong arguments: the command prints its usage and exits with EINVAL."""


class CommandFailed(VhdtoolError):
    """An error with the text of blktap's tool for standard output, and its exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class SilentExit(VhdtoolError):
    """An exit code; everything has been printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def parse(command: str, arguments: list[str], letters: str) -> Options:
    """Parse options at any position. Raises WrongArguments, also for `-h`."""
    try:
        pairs, rest = getopt.gnu_getopt(arguments, letters + "h")
    except getopt.GetoptError as error:
        if error.opt and f"{error.opt}:" in letters:
            text = f"option requires an argument -- '{error.opt}'"
        else:
            text = f"invalid option -- '{error.opt}'"
        print(f"{command}: {text}", file=sys.stderr)
        raise WrongArguments from None
    options = {name[1:]: value for name, value in pairs}
    if rest or "h" in options:
        raise WrongArguments
    return options


def require(options: Options, letters: str) -> None:
    """Raise WrongArguments unless each option of `letters` is given."""
    if any(letter not in options for letter in letters):
        raise WrongArguments


def parse_number(text: str) -> int:
    """Parse leading digits as C does; 0 when there are none."""
    match = _NUMBER.match(text)
    return min(int(match[1][:24]), (1 << 64) - 1) if match else 0


def errno_of(error: Exception) -> int:
    """The errno that blktap's tool would have for an error."""
    from vhdtool.image.chain.locate_parent import ParentMissing
    from vhdtool.storage import StorageError

    if isinstance(error, (CommandFailed, SilentExit)):
        return error.exit_code
    if isinstance(error, (StorageError, OSError)):
        return error.errno or errno.EIO
    if isinstance(error, ActivationRefused):
        return errno.EBUSY
    if isinstance(error, ParentMissing):
        return errno.ENOENT
    if isinstance(error, ImageExists):
        return errno.EEXIST
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL


def explain(error: Exception) -> None:
    """Print our explanation of an error on standard error."""
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, VhdtoolError):
        text = f"{error.filename or 'input or output'}: {error.strerror}"
    print(f"vhd-util: {text}", file=sys.stderr)


def whole_blocks(megabytes: str) -> int:
    """Convert a size in MiB to bytes, rounded up to blocks as blktap does."""
    return -(-(parse_number(megabytes) << 20) // DEFAULT_BLOCK) * DEFAULT_BLOCK


def open_image(name: str) -> "tuple[FileStorage, Metadata]":
    """Open an image and read its metadata. Raises CommandFailed with the text of blktap's tool."""
    from vhdtool.image.metadata.read import read_metadata
    from vhdtool.storage import FileStorage

    try:
        storage = FileStorage(name)
    except (VhdtoolError, OSError) as error:
        explain(error)
        raise CommandFailed(f"error opening {name}: {-errno_of(error)}", errno_of(error)) from None
    try:
        return storage, read_metadata(storage)
    except VhdtoolError as error:
        storage.close()
        explain(error)
        raise CommandFailed(f"error opening {name}: {-errno_of(error)}", errno_of(error)) from None
