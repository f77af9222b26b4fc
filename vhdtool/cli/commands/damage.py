"""`vhdtool damage`: the guest sectors, partitions and files that damage affects."""

from dataclasses import dataclass, field
from typing import Any

import click

from vhdtool.cli.arguments import image_argument, json_option
from vhdtool.cli.guest_files import FileHit, files_within, sectors
from vhdtool.cli.notes import orphans_text
from vhdtool.cli.output import load_json, print_json
from vhdtool.cli.salvage import lost_line
from vhdtool.errors import UsageError
from vhdtool.image.salvage.open import open_salvage
from vhdtool.image.salvage.partitions import Partition, partitions
from vhdtool.image.salvage.reader import LocatedOrphan, Lost, Salvage
from vhdtool.ranges import Range, merge
from vhdtool.vhd.units import SECTOR


@dataclass(slots=True)
class Hit:
    """A damaged partition. `ranges` are in bytes of the disk; `note` says why files are unknown."""

    partition: Partition
    ranges: list[Range]
    files: list[FileHit] = field(default_factory=list)
    note: str | None = None

    @property
    def damaged(self) -> int:
        return sum(stop - first for first, stop in self.ranges)

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.partition.as_dict(),
            "damaged": self.damaged,
            "sectors": [[first // SECTOR, sectors(stop - first)] for first, stop in self.ranges],
            "files": [one.as_dict() for one in self.files],
            "note": self.note,
        }


@click.command()
@image_argument
@click.option(
    "--findings",
    type=click.Path(),
    help="Output of `check --json` or `diff --json`; without it the image is checked.",
)
@click.option("--files/--no-files", default=True, help="Whether to name files.  [default: yes]")
@json_option
@click.pass_context
def damage(
    context: click.Context, image: str, findings: str | None, files: bool, as_json: bool
) -> None:
    """Show which guest sectors, partitions and files damage affects.

    Names files of ext, NTFS and FAT. An orphan block, which no BAT entry names, counts as damage
    where its position in the disk is known.

    \b
    Exit codes: 0 no damage; 1 failed; 2 damage

    \b
    Example: vhdtool damage disk.vhd
             vhdtool diff --json before.json disk.vhd > d; vhdtool damage disk.vhd --findings d
    """
    with open_salvage(image) as salvage:
        lost = salvage.lost() if findings is None else _from_findings(findings, salvage.size)
        orphans = salvage.orphans if findings is None else []
        hits = _hits(salvage, lost + _doubtful(orphans, salvage.size), files)
        notes = salvage.notes if findings is None else []
    code = 2 if lost or notes or orphans else 0
    if as_json:
        print_json(
            {
                "image": image,
                "exit_code": code,
                "notes": notes,
                "lost": [one.as_dict() for one in lost],
                "orphans": [one.as_dict() for one in orphans],
                "partitions": [one.as_dict() for one in hits],
            }
        )
    else:
        _show(image, notes, lost, orphans, hits)
    context.exit(code)


def _from_findings(path: str, size: int) -> list[Lost]:
    loaded = load_json(path)
    found = []
    try:
        for one in loaded["findings"]:
            if one["severity"] == "corrupt" and one["sectors"] is not None:
                first, count = (int(number) for number in one["sectors"])
                start, end = first * SECTOR, min((first + count) * SECTOR, size)
                if start < end:
                    found.append(Lost(start, end - start, f"{one['code']}: {one['message']}"))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path}: not the output of `check --json` or `diff --json`") from None
    return found


def _doubtful(orphans: list[LocatedOrphan], size: int) -> list[Lost]:
    """The ranges that orphan blocks may have had, where their block number is known."""
    found = []
    for one in orphans:
        if one.orphan.sectors is not None:
            first, count = one.orphan.sectors
            start, end = first * SECTOR, min((first + count) * SECTOR, size)
            found.append(Lost(start, end - start, str(one)))
    return found


def _hits(salvage: Salvage, lost: list[Lost], files: bool) -> list[Hit]:
    ranges = _merged(lost)
    if not ranges:
        return []
    hits = []
    for partition in partitions(salvage.read, salvage.size):
        inside = [
            (max(first, partition.start), min(stop, partition.end))
            for first, stop in ranges
            if first < partition.end and stop > partition.start
        ]
        if not inside:
            continue
        hit = Hit(partition, inside)
        hits.append(hit)
        if files:
            try:
                hit.files = files_within(salvage.read, partition, inside)
            except UsageError as error:
                hit.note = str(error)
    return hits


def _merged(lost: list[Lost]) -> list[Range]:
    return merge((one.start, one.end) for one in lost)


def _show(
    image: str, notes: list[str], lost: list[Lost], orphans: list[LocatedOrphan], hits: list[Hit]
) -> None:
    for note in notes:
        click.echo(f"note: {note}")
    for one in lost:
        click.echo(lost_line(one))
    for orphan in orphans:
        click.echo(str(orphan))
    for hit in hits:
        part = hit.partition
        name = f"partition {part.number}" if part.number else "the disk"
        click.echo(
            f"{name} ({part.name}, {part.system or 'file system unknown'}): "
            f"{sectors(hit.damaged)} damaged sectors"
        )
        for file in hit.files:
            click.echo(f"  {file.path}: {sectors(file.damaged)} sectors of {sectors(file.size)}")
        rest = hit.damaged - sum(one.damaged for one in hit.files)
        if hit.note is not None:
            click.echo(f"  files: {hit.note}")
        elif hit.files and rest > 0:
            click.echo(f"  no file: {sectors(rest)} sectors (free, or the file system's own)")
        elif not hit.files:
            click.echo("  no file: free space, or the file system's own")
    total = sum(stop - first for first, stop in _merged(lost))
    text = f"{image}: {sectors(total)} guest sectors are lost or in doubt"
    if orphans:
        text += f"; {orphans_text(len(orphans))}: see `vhdtool read --salvage --orphans`"
    click.echo(text)
