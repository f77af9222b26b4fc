"""Which format a file has, by its content, and which one a new file gets, by its name."""

import os

from vhdtool.errors import UsageError
from vhdtool.image.chain import is_vhd
from vhdtool.storage import FileStorage

NAMES = {"vpc": "vpc", "vhd": "vpc", "raw": "raw", "qcow2": "qcow2", "vhdx": "vhdx"}
"""What -f and -O take -> qemu-img's name."""
_MAGIC = {b"QFI\xfb": "qcow2", b"vhdxfile": "vhdx"}
_SUFFIXES = {
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".raw": "raw",
    ".img": "raw",
    ".qcow2": "qcow2",
    ".vhdx": "vhdx",
}


def guess_input(path: str) -> str:
    """The format by content; what shows none is raw. Raises StorageError."""
    if is_vhd(path):
        return "vpc"
    with FileStorage(path) as storage:
        start = storage.pread(0, 8)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    return "raw"


def guess_output(path: str) -> str:
    """The format by suffix. Raises UsageError for one that says nothing."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _SUFFIXES:
        raise UsageError(
            f"{path}: the suffix does not say which format to write; choose one with -O"
        )
    return _SUFFIXES[suffix]
