"""Notes on standard error: about blocks that a command leaves out, and sizes that disagree."""

import os
from typing import TYPE_CHECKING

import click

from vhdtool.errors import VhdtoolError

if TYPE_CHECKING:
    from vhdtool.vhd.footer import Footer


def read_footer(image: str) -> "Footer":
    from vhdtool.image.metadata.read import read_metadata
    from vhdtool.storage import FileStorage

    with FileStorage(image) as storage:
        return read_metadata(storage).footer


def note_two_sizes(image: str) -> None:
    """Says on standard error when QEMU shows another size of an image than everybody else."""
    from vhdtool.vhd.creators import readers_agree, size_for_qemu

    footer = read_footer(image)
    if not readers_agree(footer):
        click.echo(
            f"vhdtool: note: {image}: the size field says {footer.current_size} bytes, which "
            f"counts here; QEMU takes the geometry and shows {size_for_qemu(footer)}",
            err=True,
        )


LEFT_OUT = "not in the copy"


IN_PLACE = "stays where it is"


IN_THE_WAY = "may be overwritten or cut off, since the image was not closed"


GO_WITH_IT = "goes with the file when that is removed"


def note_orphans(image: str, what: str) -> None:
    """Says on standard error what a command does to blocks that no BAT entry names, if any.

    What is no VHD, or is damaged otherwise, is for the command itself to name.
    """
    from vhdtool.image.check.image import check
    from vhdtool.image.metadata.ends import read_ends
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
