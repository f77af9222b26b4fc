"""Who wrote an image, and what they mean by its size.

Source: Microsoft's specification ("vpc ", "win "), and the sources of QEMU, VirtualBox and blktap.
"""

from dataclasses import replace

from vhdtool.vhd.footer import Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.units import SECTOR

CREATORS = {
    b"vpc ": "Microsoft Virtual PC",
    b"vs  ": "Microsoft Virtual Server",
    b"win ": "Windows (Hyper-V)",
    b"qemu": "QEMU, size from geometry",
    b"qem2": "QEMU with force_size",
    b"d2v\0": "Sysinternals disk2vhd",
    b"d2v ": "Sysinternals disk2vhd",
    b"vbox": "VirtualBox",
    b"tap\0": "Xen blktap",
    b"CTXS": "Citrix",
}
HOSTS = {b"Wi2k": "Windows", b"Mac ": "Macintosh", bytes(4): "none"}
QEMU = b"qemu"
QEMU_BY_SIZE = b"qem2"
"""The code to write where QEMU, too, shall take the disk's size from the size field."""
_BY_SIZE = (b"win ", QEMU_BY_SIZE, b"d2v ", b"CTXS", b"tap\0")
"""QEMU 7.2 compares whole codes: disk2vhd's own "d2v\\0" is not among them. Its images have the
largest geometry, which makes QEMU look at the size field all the same."""


def creator_name(footer: Footer) -> str:
    """The creator in words; an unknown one is quoted."""
    return CREATORS.get(footer.creator) or f"unknown ({footer.creator!r})"


def host_name(footer: Footer) -> str:
    """The creator's host system in words."""
    return HOSTS.get(footer.creator_os) or f"unknown ({footer.creator_os!r})"


def size_is_geometry(footer: Footer) -> bool:
    """Whether QEMU takes the disk's size from cylinders x heads x sectors."""
    return footer.creator not in _BY_SIZE and not footer.geometry.is_largest


def size_for_qemu(footer: Footer) -> int:
    """The size in bytes that QEMU shows for the image; it counts whole sectors only."""
    if size_is_geometry(footer):
        return footer.geometry.size
    return footer.current_size // SECTOR * SECTOR


def with_size(footer: Footer, size: int) -> Footer:
    """The footer for a disk of `size` bytes, in which every reader finds that size.

    The creator stays where its readers find the size in the geometry, or look at the size field.
    Elsewhere it becomes QEMU's own code for an image whose size is that of the size field: few
    sizes are those of a geometry, and only QEMU reads the creator to tell which one counts.
    """
    sized = replace(footer, current_size=size, geometry=Geometry.for_size(size))
    return sized if readers_agree(sized) else replace(sized, creator=QEMU_BY_SIZE)


def readers_agree(footer: Footer) -> bool:
    """Whether readers that go by the geometry see the size that all others take from the footer."""
    return not size_is_geometry(footer) or footer.geometry.size == footer.current_size
