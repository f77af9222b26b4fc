"""Notes on standard error about orphan blocks and disagreeing sizes, and the texts of both."""

import os
from typing import TYPE_CHECKING

import click

from vhdtool.errors import VhdtoolError
from vhdtool.vhd.units import size_text

if TYPE_CHECKING:
    from vhdtool.vhd.footer import Footer


def read_footer(image: str) -> "Footer":
    from vhdtool.image.metadata.read import read_metadata
    from vhdtool.storage import FileStorage

    with FileStorage(image) as storage:
        return read_metadata(storage).footer


def note_two_sizes(image: str) -> None:
    """Note that QEMU shows another size of an image than other programs."""
    from vhdtool.vhd.creators import readers_agree, size_for_qemu

    footer = read_footer(image)
    if not readers_agree(footer):
        click.echo(
            f"vhdtool: note: {image}: {size_text(footer.current_size)} by its size field, which is "
            f"used here; QEMU uses the geometry and shows {size_text(size_for_qemu(footer))}",
            err=True,
        )


NOT_COPIED = "not in the copy"
STAYS = "unchanged"
MAY_BE_OVERWRITTEN = "may be overwritten or cut off, since the image was not closed"
REMOVED_WITH_FILE = "lost when the file is removed"


def note_orphans(image: str, effect: str) -> None:
    """Note what a command does to the orphan blocks of an image, if it has any.

    The command itself reports a file that is not a VHD, or is damaged otherwise.
    """
    from vhdtool.image.check.image import check
    from vhdtool.image.metadata.ends import read_ends
    from vhdtool.storage import FileStorage

    try:
        with FileStorage(image) as storage:
            count = len(check(storage, "unclean", bitmaps=False).orphans)
            end = read_ends(storage).footer
    except VhdtoolError:
        return
    if effect == STAYS and (end is None or not end.valid):
        effect = MAY_BE_OVERWRITTEN
    if count:
        click.echo(
            f"vhdtool: note: {image}: {orphans_text(count)}: {effect}; "
            "`vhdtool check` shows more, `vhdtool read --salvage --orphans DIR` exports them",
            err=True,
        )


def note_coalesced(image: str, into: str | None = None, whole: bool = False) -> None:
    """Note the orphan blocks of the layers that a coalesce reads and of the one that it writes."""
    from vhdtool.image.chain.open import open_chain

    with open_chain(image) as reader:
        below = [layer.name for layer in reader.layers[1:]]
    note_orphans(image, REMOVED_WITH_FILE)
    for name in below:
        last = name == below[-1] if whole else into is None or _same_file(name, into)
        note_orphans(name, STAYS if last else REMOVED_WITH_FILE)
        if last:
            break


def orphans_text(orphans: int) -> str:
    """The number of orphan blocks as a phrase."""
    blocks = "1 block" if orphans == 1 else f"{orphans} blocks"
    return f"{blocks} of data that no BAT entry names, a probable loss"


def _same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
