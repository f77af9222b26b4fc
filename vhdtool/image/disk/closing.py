"""What ends an image: its batmap and its footer."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdtool.vhd.batmap import BatmapHeader, batmap_bytes, batmap_checksum
from vhdtool.vhd.units import SECTOR

if TYPE_CHECKING:
    from vhdtool.image.disk.dynamic import DynamicDisk

Ask = Callable[[], None]
"""Raises LeaseLost when nothing more may be written."""


def write_batmap(disk: "DynamicDisk", head: BatmapHeader | None, ask: Ask) -> None:
    """Writes the batmap where the image has one, and it has changed.

    The map before its header: until the checksum fits, the map says nothing.
    """
    if head is None:
        return
    length = min(batmap_bytes(disk.header.max_entries), head.sectors * SECTOR)
    bits = disk.batmap(length)
    check = batmap_checksum(bits, disk.size, head.version)
    known = disk.storage.pread(head.offset, length)
    if known == bits and check == head.checksum and not disk.faithful:
        return
    ask()
    disk.storage.pwrite(head.offset, bits)
    disk.wrote_metadata()
    ask()
    disk.storage.pwrite(disk.header.bat_end, replace(head, checksum=check).pack())
    disk.wrote_metadata()


def write_footer(disk: "DynamicDisk", place: int, ask: Ask) -> None:
    """The footer at byte `place`, behind which the file is cut; durable when it returns."""
    storage, raw = disk.storage, disk.footer.pack()
    ask()
    storage.pwrite(place, raw)
    disk.wrote_metadata()
    disk.hooks.reached("close-footer")
    if storage.size() != place + SECTOR:
        ask()
        storage.truncate(place + SECTOR)
        disk.wrote_metadata()
        disk.hooks.reached("close-truncated")
    disk.truncated_to = place + SECTOR
    storage.flush()
