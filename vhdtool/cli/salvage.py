"""Lost ranges and orphan blocks of a salvage, as text and as exported files."""

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vhdtool.cli.notes import orphans_text
from vhdtool.vhd.units import SECTOR

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
    for one in lost:
        click.echo(lost_line(one), err=err)
    for orphan in source.orphans:
        click.echo(str(orphan), err=err)
    if source.orphans:
        hint = (
            f"exported to {orphans}"
            if orphans is not None
            else "read --salvage --orphans DIR exports them"
        )
        click.echo(f"{image}: {orphans_text(len(source.orphans))}; {hint}", err=err)
    bad = sum(one.length for one in lost)
    click.echo(f"{image}: {copied} bytes of data copied, {bad} bytes lost", err=err)
    return 2 if lost or source.notes or source.orphans else 0


def lost_line(one: "Lost") -> str:
    """A lost range as a line of text."""
    first = one.start // SECTOR
    return f"lost: guest sectors {first} to {-(-one.end // SECTOR) - 1}: {one.reason}"


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
