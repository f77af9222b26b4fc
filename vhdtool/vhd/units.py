"""Sizes, clocks and checksums that every structure shares."""

SECTOR = 512
"""Bytes in a sector; the unit of BAT entries and bitmaps."""
MIB = 1 << 20
GIB = 1 << 30
DEFAULT_BLOCK = 2 * MIB
"""Bytes of guest data in a block unless the header says otherwise."""
SMALLEST_BLOCK = 512 << 10
MAX_SIZE = 2040 * GIB
"""The virtual size at which SM and QEMU stop; the format itself ends at the u32 sector offset."""
MAX_ENTRIES = 1 << 23
"""More BAT entries than any real image has (2040 GiB in 512-KiB blocks: 4.2 million)."""
UNUSED = 0xFFFFFFFF
"""A BAT entry of a block that is not allocated."""
NO_OFFSET = 0xFFFFFFFFFFFFFFFF
EPOCH = 946684800
"""2000-01-01 00:00 UTC, where VHD time starts, in Unix seconds."""
KILLED = b"\xc7" * SECTOR
"""What tapdisk writes over the footer when it reopens an image for writing."""


def pad(length: int, unit: int = SECTOR) -> int:
    """`length` rounded up to a multiple of `unit`."""
    return -(-length // unit) * unit


def size_text(size: int) -> str:
    """A size for people: `2 MiB (2097152 bytes)`."""
    if size < 1024:
        return f"{size} byte" if size == 1 else f"{size} bytes"
    return f"{short_size(size)} ({size} bytes)"


def short_size(size: float) -> str:
    """A size in its largest unit, with up to four digits: `1.5 GiB`."""
    step = min((max(int(size), 1).bit_length() - 1) // 10, 4)
    return f"{size / (1 << 10 * step):.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[step]}"


def checksum(data: bytes | memoryview, skip: int | None = None) -> int:
    """One's complement of the sum of bytes; the four bytes at `skip` count as zero."""
    total = sum(data)
    if skip is not None:
        total -= sum(data[skip : skip + 4])
    return ~total & 0xFFFFFFFF


def vhd_time(unix: float) -> int:
    """Unix seconds to VHD seconds, clamped to what 32 bits hold."""
    return max(0, min(int(unix) - EPOCH, 0xFFFFFFFF))


def unix_time(seconds: int) -> int:
    """VHD seconds to Unix seconds."""
    return seconds + EPOCH


def raw_disk_size(file_size: int) -> int:
    """Bytes of the disk that a raw file of `file_size` bytes is, for every command and server.

    A file that ends within a sector has that whole sector; what the file lacks of it reads as
    zeros. QEMU has the same rule.
    """
    return pad(file_size)


def is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0
