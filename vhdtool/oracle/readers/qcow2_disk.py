"""The disk inside a qcow2 image, for the oracles. tests/interop compares it with qemu-img."""

import struct
from collections.abc import Iterator

from vhdtool.oracle.readers.image_view import View
from vhdtool.oracle.readers.qcow2 import COPIED, PLACE, Tables
from vhdtool.oracle.readers.vhd import SECTOR, pieces


class Qcow2Reader:
    """The disk inside a qcow2 image. Raises CorruptImage.

    `blocks`: guest cluster -> where it lies in the file, in bytes.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.tables = Tables(view)
        self.header = self.tables.header
        self.disk_sectors = self.header.size // SECTOR
        self.block_sectors = self.header.cluster // SECTOR
        self.blocks = self.tables.blocks

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """(first sector, bytes) of all data in rising order; what is left out reads as zeros."""
        for cluster, place in sorted(self.blocks.items()):
            first = cluster * self.block_sectors
            count = min(self.block_sectors, self.disk_sectors - first)
            for sector, data in pieces(self.view, place, [(0, count)]):
                yield first + sector, data

    def locate(self, sector: int) -> int | None:
        """Where a sector lies in the file, in bytes; None where it reads as zeros."""
        cluster, inside = divmod(sector, self.block_sectors)
        place = self.blocks.get(cluster)
        return None if place is None else place + inside * SECTOR

    def entry(self, cluster: int) -> int | None:
        """Where the L2 entry of a cluster lies in the file; None where there is no table."""
        index, at = divmod(cluster, self.header.table_entries)
        table = self.tables.l1.get(index)
        return None if table is None else (table & PLACE) + 8 * at


def entry_bytes(place: int) -> bytes:
    """An L2 entry for a cluster that nobody shares; 0: none."""
    return struct.pack(">Q", place | COPIED if place else 0)
