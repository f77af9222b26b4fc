"""Blocks that no BAT entry names: into files, and a word of warning where a command drops them."""

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vhdtool.errors import VhdtoolError

if TYPE_CHECKING:
    from vhdtool.image.salvage.reader import Stray

INDEX = "orphans.json"


def export_orphans(stray: "list[Stray]", folder: str) -> None:
    """A file for each orphan, and one that says where each was. Without orphans nothing is made.

    Raises StorageError, or ImageExists when the directory has such files already: nothing is left
    of what was written then.
    """
    from vhdtool.image.journal.new_file import new_file
    from vhdtool.storage import StorageError

    if not stray:
        return
    known = os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise StorageError(folder, "make the directory", error.errno or 0) from None
    made: list[str] = []
    try:
        table = []
        for one in stray:
            name = _name(one)
            with new_file(os.path.join(folder, name)) as target:
                one.copy(target)
            made.append(name)
            table.append({"file": name, **one.as_dict()})
        with new_file(os.path.join(folder, INDEX)) as target:
            target.pwrite(0, json.dumps(table, indent=2).encode() + b"\n")
    except BaseException:
        with suppress(OSError):
            for name in made:
                os.unlink(os.path.join(folder, name))
            if not known:
                os.rmdir(folder)
        raise


LEFT_OUT = "not in the copy"
IN_PLACE = "stays where it is"
IN_THE_WAY = "may be overwritten or cut off, since the image was not closed"
GO_WITH_IT = "goes with the file when that is removed"


def note_orphans(image: str, what: str) -> None:
    """Says on standard error what a command does to blocks that no BAT entry names, if any.

    What is no VHD, or is damaged otherwise, is for the command itself to name.
    """
    from vhdtool.image.check.image import check
    from vhdtool.image.metadata.read import read_ends
    from vhdtool.storage import FileStorage

    try:
        with FileStorage(image) as storage:
            count = len(check(storage, "unclean", bitmaps=False).orphans)
            end = read_ends(storage).end
    except VhdtoolError:
        return
    if what == IN_PLACE and (end is None or not end.valid):
        what = IN_THE_WAY
    if count:
        click.echo(
            f"vhdtool: note: {image}: {counted(count)}: {what}; "
            "`vhdtool check` says more, `vhdtool read --salvage --orphans DIR` exports it",
            err=True,
        )


def note_coalesced(image: str, into: str | None = None, whole: bool = False) -> None:
    """Orphans of the layers that may be removed after a coalesce, and of the one it writes to."""
    from vhdtool.image.chain.open import open_chain

    with open_chain(image) as reader:
        below = [layer.name for layer in reader.layers[1:]]
    note_orphans(image, GO_WITH_IT)
    for name in below:
        last = name == below[-1] if whole else into is None or _same(name, into)
        note_orphans(name, IN_PLACE if last else GO_WITH_IT)
        if last:
            break


def counted(orphans: int) -> str:
    """How many orphans there are, and what that means."""
    blocks = "1 block" if orphans == 1 else f"{orphans} blocks"
    return f"{blocks} of data that no BAT entry names, a probable loss"


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _name(one: "Stray") -> str:
    """Where it was found, and which block it may be. Parents may have orphans at one place."""
    image = os.path.basename(one.storage.name)
    guess = f"-maybe-block-{one.orphan.guest}" if one.orphan.guest is not None else ""
    return f"{image}-sector-{one.orphan.entry}{guess}.raw"
