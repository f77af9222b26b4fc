"""Arguments as blktap's tool reads them, and errors as it reports them: by number."""

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
"""Letter of an option (without its dash) -> its value, "" for a flag."""
_NUMBER = re.compile(r"\s*(\d+)")


class Wrong(Exception):
    """Arguments that the command does not take; it prints its usage and exits with EINVAL."""


class Failed(VhdtoolError):
    """What blktap's tool would say on standard output, and the number it exits with."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class Quiet(VhdtoolError):
    """A number to exit with; all that there is to say was said."""

    def __init__(self, number: int) -> None:
        super().__init__("")
        self.number = number


def parse(command: str, words: list[str], letters: str) -> Options:
    """Options of a command, wherever they stand. Raises Wrong, as for `-h`."""
    try:
        pairs, rest = getopt.gnu_getopt(words, letters + "h")
    except getopt.GetoptError as error:
        if error.opt and f"{error.opt}:" in letters:
            text = f"option requires an argument -- '{error.opt}'"
        else:
            text = f"invalid option -- '{error.opt}'"
        print(f"{command}: {text}", file=sys.stderr)
        raise Wrong from None
    options = {name[1:]: value for name, value in pairs}
    if rest or "h" in options:
        raise Wrong
    return options


def needed(options: Options, letters: str) -> None:
    """Raises Wrong unless every option of `letters` was given."""
    if any(letter not in options for letter in letters):
        raise Wrong


def number(text: str) -> int:
    """The digits at the start, as C reads a number; 0 when there is none."""
    match = _NUMBER.match(text)
    return min(int(match[1][:24]), (1 << 64) - 1) if match else 0


def errno_of(error: Exception) -> int:
    """The number that blktap's tool would have met."""
    from vhdtool.image.chain.locate_parent import ParentMissing
    from vhdtool.storage import StorageError

    if isinstance(error, (Failed, Quiet)):
        return error.number
    if isinstance(error, (StorageError, OSError)):
        return error.errno or errno.EIO
    if isinstance(error, ActivationRefused):
        return errno.EBUSY
    if isinstance(error, ParentMissing):
        return errno.ENOENT
    if isinstance(error, ImageExists):
        return errno.EEXIST
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL


def say(error: Exception) -> None:
    """Our explanation, where no script looks."""
    print(f"vhd-util: {error}", file=sys.stderr)


def whole_blocks(megabytes: str) -> int:
    """Bytes of a size in MiB, rounded up to blocks as blktap does."""
    return -(-(number(megabytes) << 20) // DEFAULT_BLOCK) * DEFAULT_BLOCK


def open_image(name: str) -> "tuple[FileStorage, Metadata]":
    """The image and its metadata. Raises Failed with the words of blktap's tool."""
    from vhdtool.image.metadata.read import read_metadata
    from vhdtool.storage import FileStorage

    try:
        storage = FileStorage(name)
    except (VhdtoolError, OSError) as error:
        say(error)
        raise Failed(f"error opening {name}: {-errno_of(error)}", errno_of(error)) from None
    try:
        return storage, read_metadata(storage)
    except VhdtoolError as error:
        storage.close()
        say(error)
        raise Failed(f"error opening {name}: {-errno_of(error)}", errno_of(error)) from None
