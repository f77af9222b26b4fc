"""Cylinders, heads and sectors per track, as the footer keeps them."""

from dataclasses import dataclass

from vhdtool.vhd.units import SECTOR

MAX_SECTORS = 65535 * 16 * 255


@dataclass(frozen=True, slots=True)
class Geometry:
    """A CHS triple. `Geometry.for_size` is the spec's appendix "CHS calculation"."""

    cylinders: int
    heads: int
    sectors: int

    @classmethod
    def for_size(cls, size: int) -> "Geometry":
        """The geometry for a disk of `size` bytes; it may cover less than the disk.

        >>> Geometry.for_size(1 << 30)
        Geometry(cylinders=2080, heads=16, sectors=63)
        """
        total = min(max(1, -(-size // SECTOR)), MAX_SECTORS)
        if total >= 65535 * 16 * 63:
            heads, track = 16, 255
            tracks = total // track
        else:
            track = 17
            tracks = total // track
            heads = max(4, -(-tracks // 1024))
            if tracks >= heads * 1024 or heads > 16:
                track, heads = 31, 16
                tracks = total // track
            if tracks >= heads * 1024:
                track, heads = 63, 16
                tracks = total // track
        return cls(tracks // heads, heads, track)

    @property
    def size(self) -> int:
        """Bytes that the geometry addresses."""
        return self.cylinders * self.heads * self.sectors * SECTOR

    @property
    def is_largest(self) -> bool:
        """The largest triple, which stands for "look at the size instead"."""
        return self.cylinders * self.heads * self.sectors == MAX_SECTORS

    def __str__(self) -> str:
        return f"{self.cylinders}/{self.heads}/{self.sectors}"


NO_GEOMETRY = Geometry(0, 0, 0)
