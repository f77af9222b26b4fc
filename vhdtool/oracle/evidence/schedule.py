"""The write load as a pure function: (seed, n) -> (sector, length, content).

The same module runs in the guest, which writes, and in the oracles, which recompute what the disk
must hold. It imports nothing, so that it starts in an initramfs with a minimal Python.

The shape of the load decides which faults show (measured, docs/verdicts.md):
- even writes allocate: each goes to a block that was free so far, and to the *last* 4 KiB of it,
  because a re-open that kills the footer damages only the last 512 bytes of the file;
- odd writes rewrite or extend blocks that are allocated already, so that stale bitmaps and
  stale data show.
"""

SECTOR = 512
TAIL = 8
"""Sectors of the first write to a block: its last 4 KiB."""
LONGEST = 16
"""Sectors of the longest write."""
_RECORD = 32
_MASK = (1 << 64) - 1


def mix(seed: int, n: int) -> int:
    """A 64-bit hash of two integers (splitmix64); the same on every Python."""
    x = (seed * 0x9E3779B97F4A7C15 + n * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Schedule:
    """The load for one seed on a disk of `disk_sectors`, in blocks of `block_sectors`.

    The last `reserved` blocks belong to the deep half (depth.py).

    >>> load = Schedule(seed=1, disk_sectors=8192, block_sectors=4096)
    >>> sector, length = load.extent(0)
    >>> (sector + length) % 4096, length
    (0, 8)
    """

    def __init__(self, seed: int, disk_sectors: int, block_sectors: int, reserved: int = 0) -> None:
        self.seed = seed
        self.disk_sectors = disk_sectors
        self.block_sectors = block_sectors
        blocks = -(-disk_sectors // block_sectors) - reserved
        self.order = list(range(blocks))
        # Fisher-Yates: neighbours in time are far apart in the BAT, and sometimes in one sector.
        for i in range(blocks - 1, 0, -1):
            j = mix(seed ^ 0xB10C, i) % (i + 1)
            self.order[i], self.order[j] = self.order[j], self.order[i]

    def extent(self, n: int) -> tuple[int, int]:
        """First sector and length in sectors of write `n` (from 0)."""
        k = n // 2
        if n % 2 == 0 and k < len(self.order):
            first, end = self._block(self.order[k])
            length = min(TAIL, end - first)
            return end - length, length
        dice = mix(self.seed, n)
        first, end = self._block(self.order[dice % min(k + 1, len(self.order))])
        size = end - first
        if dice >> 32 & 1:
            length = min(TAIL, size)
            return end - length, length
        length = min(1 + (dice >> 33) % LONGEST, size)
        return first + (dice >> 40) % (size - length + 1), length

    def _block(self, block: int) -> tuple[int, int]:
        first = block * self.block_sectors
        return first, min(first + self.block_sectors, self.disk_sectors)

    def sector_content(self, n: int, sector: int) -> bytes:
        """The 512 bytes of write `n` at `sector`. They hold seed, write and sector."""
        record = b"load" + b"".join(v.to_bytes(8, "big") for v in (self.seed & _MASK, n, sector))
        check = mix(self.seed ^ n, sector) & 0xFFFFFFFF
        return (record + check.to_bytes(4, "big")) * (SECTOR // _RECORD)

    def content(self, n: int) -> bytes:
        """All bytes of write `n`."""
        sector, length = self.extent(n)
        return b"".join(self.sector_content(n, sector + i) for i in range(length))


def identify(sector_bytes: bytes) -> tuple[int, int, int] | None:
    """(seed, n, sector) that a sector's content names; None if it is not content of a load."""
    record = sector_bytes[:_RECORD]
    if len(sector_bytes) != SECTOR or record[:4] != b"load":
        return None
    seed, n, sector = (int.from_bytes(record[i : i + 8], "big") for i in (4, 12, 20))
    check = mix(seed ^ n, sector) & 0xFFFFFFFF
    if record[28:] != check.to_bytes(4, "big") or sector_bytes != record * (SECTOR // _RECORD):
        return None
    return seed, n, sector
