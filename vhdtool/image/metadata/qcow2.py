"""The metadata of a qcow2 image: its size and the file offset of each cluster.

Read only; QEMU writes such images. Source of the layout: docs/interop/qcow2.rst of QEMU. All
integers on disk are big-endian. Supported are images without compression, encryption and internal
snapshots, whose data is in one file: an image that names another file makes its readers open that.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vhdtool.errors import CorruptImage, UnsupportedImage
from vhdtool.storage import Storage
from vhdtool.vhd.units import SECTOR

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_READS_AS_ZEROS = 1
_CORRUPT, _DATA_FILE, _EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 4
_MAX_L1 = 4 << 20
"""Entries: 32 MiB of table, QEMU's own limit."""


@dataclass(frozen=True)
class Header:
    """Sizes in bytes; offsets in bytes of the file."""

    size: int
    cluster: int
    l1_offset: int
    l1_entries: int

    @property
    def table_entries(self) -> int:
        """Number of clusters that one L2 table maps."""
        return self.cluster // 8

    @property
    def clusters(self) -> int:
        """Number of clusters of the disk."""
        return -(-self.size // self.cluster)


def read_header(storage: Storage) -> Header:
    """Read and check the header. Raises CorruptImage, or UnsupportedImage."""
    raw = storage.pread(0, 112)
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise CorruptImage(f"{storage.name}: not a qcow2 image (no header)")
    (_, version, backing, _, bits, size, crypt, l1_entries, l1_offset, _, _, snapshots,
     _) = _HEADER.unpack_from(raw)  # fmt: skip
    incompatible = _FEATURES.unpack_from(raw, 72)[0] if version >= 3 and len(raw) == 112 else 0
    if version not in (2, 3) or not 9 <= bits <= 21:
        raise CorruptImage(f"{storage.name}: qcow2 version {version}, clusters of 2^{bits} bytes")
    header = Header(size // SECTOR * SECTOR, 1 << bits, l1_offset, l1_entries)
    for present, feature in (
        (backing, "a backing file"),
        (crypt, "encryption"),
        (snapshots, "internal snapshots"),
        (incompatible & _DATA_FILE, "its data in another file"),
        (incompatible & _EXTENDED_L2, "subclusters"),
    ):
        if present:
            raise UnsupportedImage(
                f"{storage.name}: has {feature}, which is not supported; `qemu-img convert -O "
                f"qcow2` makes an image without"
            )
    if incompatible & _CORRUPT:
        raise CorruptImage(f"{storage.name}: QEMU marked it as corrupt; see `qemu-img check`")
    needed = -(-header.clusters // header.table_entries)
    if l1_offset % header.cluster or not needed <= l1_entries <= _MAX_L1 or not size:
        raise CorruptImage(f"{storage.name}: an L1 table of {l1_entries} entries at {l1_offset}")
    return header


def cluster_offsets(storage: Storage, header: Header) -> Iterator[tuple[int, int]]:
    """(guest cluster, byte offset in the file) of each one with data. Raises UnsupportedImage."""
    for index, table in _l2_tables(storage, header):
        raw = storage.pread(table, header.cluster).ljust(header.cluster, b"\0")
        if not raw.strip(b"\0"):
            continue
        for number, (entry,) in enumerate(struct.iter_unpack(">Q", raw)):
            if entry & _COMPRESSED:
                raise UnsupportedImage(f"{storage.name}: has compressed clusters")
            if entry & _OFFSET_MASK and not entry & _READS_AS_ZEROS:
                yield index * header.table_entries + number, entry & _OFFSET_MASK


def _l2_tables(storage: Storage, header: Header) -> Iterator[tuple[int, int]]:
    """(index, byte offset in the file) of each L2 table."""
    raw = storage.pread(header.l1_offset, header.l1_entries * 8)
    for index, (entry,) in enumerate(struct.iter_unpack(">Q", raw[: len(raw) // 8 * 8])):
        if entry & _OFFSET_MASK:
            yield index, entry & _OFFSET_MASK
