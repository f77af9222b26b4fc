"""The guest sectors, partitions and files that the damage of an image affects."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.image.metadata.findings import NoTruthValue
from vhdtool.image.salvage.files import FileHit, files_within, sectors
from vhdtool.image.salvage.open import open_salvage
from vhdtool.image.salvage.partitions import Partition, partitions
from vhdtool.image.salvage.reader import LocatedOrphan, Lost, Salvage
from vhdtool.ranges import Range, merge
from vhdtool.vhd.units import SECTOR


@dataclass(slots=True)
class DamagedPartition:
    """A damaged partition. `ranges` are in bytes of the disk; `note` says why files are unknown."""

    partition: Partition
    ranges: list[Range]
    files: list[FileHit] = field(default_factory=list)
    note: str | None = None

    @property
    def damaged(self) -> int:
        """Bytes that are lost or in doubt."""
        return sum(stop - first for first, stop in self.ranges)

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types."""
        return {
            **self.partition.as_dict(),
            "damaged": self.damaged,
            "sectors": [[first // SECTOR, sectors(stop - first)] for first, stop in self.ranges],
            "files": [one.as_dict() for one in self.files],
            "note": self.note,
        }


@dataclass(slots=True)
class Damage(NoTruthValue):
    """The data of an image that is lost or in doubt, and what it affects."""

    image: str
    notes: list[str]
    """Messages about damage that concerns the image as a whole."""
    lost: list[Lost]
    orphans: list[LocatedOrphan]
    partitions: list[DamagedPartition]

    @property
    def exit_code(self) -> int:
        """0 for no damage, 2 for damage."""
        return 2 if self.lost or self.notes or self.orphans else 0

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types."""
        return {
            "image": self.image,
            "exit_code": self.exit_code,
            "notes": self.notes,
            "lost": [one.as_dict() for one in self.lost],
            "orphans": [one.as_dict() for one in self.orphans],
            "partitions": [one.as_dict() for one in self.partitions],
        }


def find_damage(
    path: str | os.PathLike[str],
    files: bool = True,
    findings: Callable[[int], list[Lost]] | None = None,
) -> Damage:
    """Find the data that damage affects; without `files` no names of files.

    `findings`: the lost ranges of a disk of that size, from an earlier check; without it the image
    is checked. Raises as `open_salvage` does.
    """
    with open_salvage(path) as source:
        lost = source.lost() if findings is None else findings(source.size)
        orphans = source.orphans if findings is None else []
        notes = source.notes if findings is None else []
        ranges = merged(lost + _doubtful(orphans, source.size))
        return Damage(os.fspath(path), notes, lost, orphans, _affected(source, ranges, files))


def merged(lost: Iterable[Lost]) -> list[Range]:
    """The ranges without their reasons, neighbours merged."""
    return merge((one.start, one.end) for one in lost)


def _doubtful(orphans: list[LocatedOrphan], size: int) -> list[Lost]:
    """The ranges that orphan blocks may have had, where their block number is known."""
    found = []
    for one in orphans:
        if one.orphan.sectors is not None:
            first, count = one.orphan.sectors
            start, end = first * SECTOR, min((first + count) * SECTOR, size)
            found.append(Lost(start, end - start, str(one)))
    return found


def _affected(source: Salvage, ranges: list[Range], files: bool) -> list[DamagedPartition]:
    if not ranges:
        return []
    found = []
    for partition in partitions(source.read, source.size):
        inside = [
            (max(first, partition.start), min(stop, partition.end))
            for first, stop in ranges
            if first < partition.end and stop > partition.start
        ]
        if not inside:
            continue
        hit = DamagedPartition(partition, inside)
        found.append(hit)
        if files:
            try:
                hit.files = files_within(source.read, partition, inside)
            except UsageError as error:
                hit.note = str(error)
    return found
