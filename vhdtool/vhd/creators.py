"""Who wrote an image, and what they mean by its size.

Source: Microsoft's specification ("vpc ", "win "), and the sources of QEMU, VirtualBox and blktap.
"""

from vhdtool.vhd.footer import Footer

CREATORS = {
    b"vpc ": "Microsoft Virtual PC",
    b"vs  ": "Microsoft Virtual Server",
    b"win ": "Windows (Hyper-V)",
    b"qemu": "QEMU, size from geometry",
    b"qem2": "QEMU with force_size",
    b"d2v\0": "Sysinternals disk2vhd",
    b"vbox": "VirtualBox",
    b"tap\0": "Xen blktap",
    b"CTXS": "Citrix",
}
HOSTS = {b"Wi2k": "Windows", b"Mac ": "Macintosh", bytes(4): "none"}
_BY_SIZE = (b"win ", b"qem2", b"d2v\0", b"CTXS", b"tap\0")


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
    """The size in bytes that QEMU shows for the image."""
    return footer.geometry.size if size_is_geometry(footer) else footer.current_size
