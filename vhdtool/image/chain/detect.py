"""Which format a file has, by its content, and which one a new file gets, by its name."""

import os

from vhdtool.errors import NotAVhd, UsageError
from vhdtool.image.metadata.ends import read_ends
from vhdtool.image.metadata.signatures import SUFFIXES, description, likeness, promised
from vhdtool.storage import Storage
from vhdtool.storage.open import open_anywhere

NAMES = {"vpc": "vpc", "vhd": "vpc", "raw": "raw", "qcow2": "qcow2", "vhdx": "vhdx"}
"""What -f and -O take -> qemu-img's name."""
_IN_WORDS = {"vpc": "VHD", "qcow2": "qcow2", "vhdx": "VHDX"}
_INSIST = "`--format raw` takes the file as a raw disk"


def guess_input(path: str | os.PathLike[str]) -> str:
    """The format of a file to be converted: `identify`'s, else raw. Raises as that does."""
    with open_anywhere(path) as storage:
        return identify(storage, ("qcow2", "vhdx")) or "raw"


def identify(storage: Storage, others: tuple[str, ...]) -> str | None:
    """ "vpc", one of the `others` that the caller can read, or None: a raw disk may be all this.

    The content decides, and a VHD's footer counts first: what stands at the beginning of a fixed
    VHD is the guest's. Raises NotAVhd or UsageError where a guess could be wrong: the name promises
    a format that the content does not have, or the content is none that can be read.
    """
    try:
        ends = read_ends(storage)
    except NotAVhd:
        ends = None
    found = likeness(storage)
    name = found.format if found is not None and found.format in others else None
    # Without a valid footer, what looks like a header may be data of an image of another format.
    if ends is not None and (ends.best is not None or name is None):
        return "vpc"
    expected = promised(storage.name)
    if expected not in (None, "raw", name):
        error = NotAVhd if expected == "vpc" else UsageError
        hint = f"`--format {name}` takes it for that, {_INSIST}" if name is not None else _INSIST
        raise error(
            f"{storage.name}: is no {_IN_WORDS[expected]} as its name says; "
            f"{description(storage)}; {hint}"
        )
    if found is not None and name is None:
        raise UsageError(f"{storage.name}: looks like {found.text}; {_INSIST}")
    return name


def guess_output(path: str) -> str:
    """The format by suffix. Raises UsageError for one that says nothing."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: the suffix does not say which format to write; choose one with -O"
        )
    return SUFFIXES[suffix]
