"""The format of a file by magic numbers in its content, and by the suffix of its name.

The offsets and magic numbers are those of file(1) and of QEMU's block drivers.
"""

import os
from dataclasses import dataclass

from vhdtool.storage import Storage
from vhdtool.vhd.footer import COOKIE, FIXED, Footer
from vhdtool.vhd.units import SECTOR

_SIGNATURES = (
    (0, b"QFI\xfb", "a qcow2 image", "qcow2"),
    (0, b"vhdxfile", "a VHDX image", "vhdx"),
    (0, b"KDMV", "a VMDK image", None),
    (0, b"COWD", "a VMDK image", None),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK image", None),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", None),
    (0, b"QED\0", "a QED image", None),
    (0, b"WithoutFreeSpace", "a Parallels image", None),
    (0, b"WithouFreSpacExt", "a Parallels image", None),
    (0, b"EVF\x09\x0d\x0a\xff\0", "an EnCase image", None),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", None),
    (0, b"MSWIM\0\0\0", "a WIM archive", None),
    (0, b"\x1f\x8b\x08", "a file packed with gzip", None),
    (0, b"BZh", "a file packed with bzip2", None),
    (0, b"\xfd7zXZ\0", "a file packed with xz", None),
    (0, b"\x28\xb5\x2f\xfd", "a file packed with zstd", None),
    (0, b"\x04\x22\x4d\x18", "a file packed with lz4", None),
    (0, b"\x89LZO\0\r\n\x1a\n", "a file packed with lzop", None),
    (0, b"PK\x03\x04", "a zip archive", None),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", None),
    (0, b"Rar!\x1a\x07", "a RAR archive", None),
    (257, b"ustar", "a tar archive (OVA and XVA files are such)", None),
)
"""(offset, magic number, description, value of -f where the format can be converted)."""
_ON_RAW_DISKS = (
    (0x8001, b"CD001", "an ISO 9660 image"),
    (512, b"EFI PART", "a raw disk with a GPT"),
    (3, b"NTFS    ", "a raw NTFS volume"),
    (1080, b"\x53\xef", "a raw ext file system"),
    (510, b"\x55\xaa", "a raw disk with an MBR"),
)
_START = 36 << 10
_TAIL = 1 << 20
"""Bytes at the end in which a footer is searched: downloads and stores pad files to a MiB."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A recognized format: its description, and the value of -f where it can be converted."""

    text: str
    format: str | None = None


def signature(storage: Storage) -> Signature | None:
    """Recognize an image, archive or packed file; None for content that a raw disk may have.

    A VHD is recognized only where something follows its footer. Raises StorageError.
    """
    start = storage.pread(0, _START)
    for offset, magic, text, name in _SIGNATURES:
        if start.startswith(magic, offset):
            return Signature(text, name)
    return _displaced_vhd(storage)


def description(storage: Storage) -> str:
    """Describe the content in a clause for a message. Raises StorageError."""
    known = signature(storage)
    if known is not None:
        return f"it looks like {known.text}"
    start = storage.pread(0, _START)
    matches = (text for at, magic, text in _ON_RAW_DISKS if start.startswith(magic, at))
    match = next(matches, None)
    text = "its content shows no known format" if match is None else f"it looks like {match}"
    # Without its footer a fixed VHD cannot be told from a raw disk.
    lost = format_by_suffix(storage.name) == "vpc"
    return f"{text} (so does a fixed VHD that lost its end)" if lost else text


def no_vhd(storage: Storage) -> str:
    """The message for a file that is not a VHD, with what it is and which tool is for it."""
    known = signature(storage)
    if known is not None and known.format is not None:
        return (
            f"{storage.name}: {known.text}, not a VHD; `qemu-img check` is for it, and "
            f"`vhdtool convert -f {known.format}` copies it to a VHD"
        )
    return (
        f"{storage.name}: not a VHD (neither a footer nor a dynamic disk header); "
        f"{description(storage)}"
    )


def _displaced_vhd(storage: Storage) -> Signature | None:
    size = storage.size()
    first = max(0, size - _TAIL)
    tail = storage.pread(first, size - first)
    at = len(tail)
    while (at := tail.rfind(COOKIE, 0, at)) >= 0:
        footer = Footer.unpack(tail[at : at + SECTOR]) if at + SECTOR < len(tail) else None
        offset = first + at
        if footer is not None and footer.valid and footer.disk_type == FIXED:
            if footer.current_size != offset:
                continue
            return Signature(
                "a fixed VHD with more behind its footer "
                f"(`truncate -s {offset + SECTOR}` cuts it off)"
            )
    return None


SUFFIXES = {
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".avhd": "vpc",
    ".raw": "raw",
    ".img": "raw",
    ".qcow2": "qcow2",
    ".vhdx": "vhdx",
}
"""Suffix of a name -> qemu-img's name of the format."""


def format_by_suffix(path: str | os.PathLike[str]) -> str | None:
    """The format that the suffix of a file's name stands for, or None."""
    return SUFFIXES.get(os.path.splitext(os.fspath(path))[1].lower())
