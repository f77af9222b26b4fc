"""Lost ranges and orphan blocks of a salvage, as text and as exported files."""

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vhdtool.cli.notes import orphans_text
from vhdtool.vhd.units import SECTOR, size_text

if TYPE_CHECKING:
    from vhdtool.image.salvage.reader import LocatedOrphan, Lost, Salvage


def report_salvage(
    image: str,
    source: "Salvage",
    copied: int,
    lost: "list[Lost]",
    orphans: str | None = None,
    err: bool = False,
) -> int:
    """Print what a salvage copied and lost; return the exit code."""
    for note in source.notes:
        click.echo(f"note: {note}", err=err)
    for line in [*placed_lines(source.placed), *lost_lines(lost), *orphan_lines(source.orphans)]:
        click.echo(line, err=err)
    if source.orphans:
        hint = (
            f"exported to {orphans}"
            if orphans is not None
            else "read --salvage --orphans DIR exports them"
        )
        click.echo(f"{image}: {orphans_text(len(source.orphans))}; {hint}", err=err)
    bad = sum(one.length for one in lost)
    text = f"{image}: {size_text(copied)} of data copied, {size_text(bad)} lost"
    if source.placed:
        blocks = "1 block was" if len(source.placed) == 1 else f"{len(source.placed)} blocks were"
        text += f"; {blocks} placed by evidence, which is a guess: compare them"
    click.echo(text, err=err)
    return 2 if lost else source.exit_code


MOST_LINES = 20
"""Lines of one kind: a damaged table can have thousands, and `--json` has all."""


def lost_lines(lost: "list[Lost]") -> list[str]:
    """Lost ranges as lines of text; neighbours that are lost for one kind of reason share one."""
    groups: list[list[Lost]] = []
    for one in lost:
        last = groups[-1][-1] if groups else None
        if last is not None and last.end == one.start and _kind(last) == _kind(one):
            groups[-1].append(one)
        else:
            groups.append([one])
    lines = []
    for group in groups:
        first = group[0].start // SECTOR
        more = f" (and {len(group) - 1} more of this kind)" if len(group) > 1 else ""
        last_sector = -(-group[-1].end // SECTOR) - 1
        lines.append(f"lost: guest sectors {first} to {last_sector}: {group[0].reason}{more}")
    return _bounded(lines, "lost")


def _kind(one: "Lost") -> str:
    """The code with which the reason begins."""
    return one.reason.split(":", 1)[0]


def orphan_lines(orphans: "list[LocatedOrphan]") -> list[str]:
    """Orphan blocks as lines of text."""
    return _bounded([str(one) for one in orphans], "orphan blocks")


def placed_lines(placed: "list[LocatedOrphan]") -> list[str]:
    """Orphan blocks that were placed, with the evidence."""
    lines = [
        f"placed (a guess): the block at sector {one.orphan.entry} as block {one.orphan.guest}: "
        f"{one.orphan.reason}"
        for one in placed
    ]
    return _bounded(lines, "placed")


def _bounded(lines: list[str], name: str) -> list[str]:
    if len(lines) <= MOST_LINES + 1:
        return lines
    return [*lines[:MOST_LINES], f"{name}: {len(lines) - MOST_LINES} more; `--json` lists them"]


def write_mapfile(path: str, source: "Salvage", lost: "list[Lost]", start: int, end: int) -> None:
    """Write a new mapfile of ddrescue for a copy of guest bytes [start, end)."""
    from vhdtool.image.journal.new_file import new_file
    from vhdtool.image.salvage.mapfile import mapfile

    text = mapfile(
        max(end - start, 0),
        [(one.start - start, one.end - start) for one in lost],
        [(first - start, stop - start) for first, stop in source.guessed()],
        f"vhdtool read --salvage {source.names[0]}",
    )
    with new_file(path) as target:
        target.pwrite(0, text.encode())


INDEX = "orphans.json"


def export_orphans(orphans: "list[LocatedOrphan]", folder: str) -> None:
    """Write a file for each orphan block, and an index with its position. No blocks, no files.

    Raises StorageError, or ImageExists when the directory has such files already. Then all files
    of this call are removed.
    """
    from vhdtool.image.journal.new_file import new_file
    from vhdtool.storage import StorageError

    if not orphans:
        return
    existed = os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise StorageError(folder, "make the directory", error.errno or 0) from None
    written: list[str] = []
    try:
        table = []
        for one in orphans:
            name = _file_name(one)
            with new_file(os.path.join(folder, name)) as target:
                one.copy(target)
            written.append(name)
            table.append({"file": name, **one.as_dict()})
        with new_file(os.path.join(folder, INDEX)) as target:
            target.pwrite(0, json.dumps(table, indent=2).encode() + b"\n")
    except BaseException:
        with suppress(OSError):
            for name in written:
                os.unlink(os.path.join(folder, name))
            if not existed:
                os.rmdir(folder)
        raise


def _file_name(one: "LocatedOrphan") -> str:
    """A name from image, sector and probable block; two images may have orphans at one sector."""
    image = os.path.basename(one.storage.name)
    guess = f"-maybe-block-{one.orphan.guest}" if one.orphan.guest is not None else ""
    return f"{image}-sector-{one.orphan.entry}{guess}.raw"
