"""The format of a file by its content, and of a new file by its suffix."""

import os

from vhdtool.errors import NotAVhd, UsageError
from vhdtool.image.metadata.ends import read_ends
from vhdtool.image.metadata.signatures import description, format_by_suffix, signature
from vhdtool.storage import Storage
from vhdtool.storage.paths import open_storage

NAMES = {"vpc": "vpc", "vhd": "vpc", "raw": "raw", "qcow2": "qcow2", "vhdx": "vhdx"}
"""Value of -f and -O -> qemu-img's name of the format."""
_TITLES = {"vpc": "VHD", "qcow2": "qcow2", "vhdx": "VHDX"}
_AS_RAW = "`--format raw` takes the file as a raw disk"


def guess_input(path: str | os.PathLike[str]) -> str:
    """The format of a file to be converted: that of `identify`, else raw. Raises as it does."""
    with open_storage(path) as storage:
        return identify(storage, ("qcow2", "vhdx")) or "raw"


def identify(storage: Storage, others: tuple[str, ...]) -> str | None:
    """The format of a file: "vpc", one of the `others` that the caller can read, or None (raw).

    The content decides. A valid VHD footer has precedence, as a fixed VHD begins with guest data.
    Raises NotAVhd or UsageError where the result could be wrong: the content does not have the
    format of the file's suffix, or it has a format that the caller cannot read.
    """
    try:
        ends = read_ends(storage)
    except NotAVhd:
        ends = None
    known = signature(storage)
    name = known.format if known is not None and known.format in others else None
    # Without a valid footer, what looks like a header may be data of an image of another format.
    if ends is not None and (ends.best is not None or name is None):
        return "vpc"
    expected = format_by_suffix(storage.name)
    if expected not in (None, "raw", name):
        error = NotAVhd if expected == "vpc" else UsageError
        hint = f"`--format {name}` takes it as such, {_AS_RAW}" if name is not None else _AS_RAW
        raise error(
            f"{storage.name}: not a {_TITLES[expected]} image, as its suffix says; "
            f"{description(storage)}; {hint}"
        )
    if known is not None and name is None:
        raise UsageError(f"{storage.name}: looks like {known.text}; {_AS_RAW}")
    return name


def guess_output(path: str) -> str:
    """The format of a new file by its suffix. Raises UsageError for an unknown suffix."""
    known = format_by_suffix(path)
    if known is None:
        raise UsageError(
            f"{path}: the suffix does not say which format to write; choose one with -O"
        )
    return known
