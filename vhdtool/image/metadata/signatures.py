"""What the content of a file looks like, for messages and for refusing to guess.

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
"""(offset, bytes, in words, the format's name for -f where it can be converted)."""
_ON_RAW_DISKS = (
    (0x8001, b"CD001", "an ISO 9660 image"),
    (512, b"EFI PART", "a raw disk with a GPT"),
    (3, b"NTFS    ", "a raw NTFS volume"),
    (1080, b"\x53\xef", "a raw ext file system"),
    (510, b"\x55\xaa", "a raw disk with an MBR"),
)
_START = 36 << 10
_TAIL = 1 << 20
"""Bytes at the end in which a footer is looked for: what downloads and stores pad to."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """`text` is in words; `format` the name for -f where it can be converted."""

    text: str
    format: str | None = None


def likeness(storage: Storage) -> Likeness | None:
    """The image, archive or packed file that this is, None for anything that a raw disk may hold.

    A VHD counts only when something follows its footer. Raises StorageError.
    """
    start = storage.pread(0, _START)
    for at, magic, text, name in _SIGNATURES:
        if start.startswith(magic, at):
            return Likeness(text, name)
    return _displaced_vhd(storage)


def description(storage: Storage) -> str:
    """What the content looks like, as a clause for a message. Raises StorageError."""
    found = likeness(storage)
    if found is not None:
        return f"it looks like {found.text}"
    start = storage.pread(0, _START)
    shown = (text for at, magic, text in _ON_RAW_DISKS if start.startswith(magic, at))
    known = next(shown, None)
    text = "its content shows no known format" if known is None else f"it looks like {known}"
    # The footer was all by which such a file could be known.
    lost = promised(storage.name) == "vpc"
    return f"{text} (so does a fixed VHD that lost its end)" if lost else text


def _displaced_vhd(storage: Storage) -> Likeness | None:
    size = storage.size()
    first = max(0, size - _TAIL)
    tail = storage.pread(first, size - first)
    at = len(tail)
    while (at := tail.rfind(COOKIE, 0, at)) >= 0:
        footer = Footer.unpack(tail[at : at + SECTOR]) if at + SECTOR < len(tail) else None
        place = first + at
        if footer is not None and footer.valid and footer.disk_type == FIXED:
            if footer.current_size != place:
                continue
            return Likeness(
                "a fixed VHD with more behind its footer "
                f"(`truncate -s {place + SECTOR}` cuts it off)"
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
"""Suffix of a name -> the format that it promises, as qemu-img calls it."""


def promised(path: str | os.PathLike[str]) -> str | None:
    """The format that a file's name promises, or None."""
    return SUFFIXES.get(os.path.splitext(os.fspath(path))[1].lower())
