"""`vhdtool resize`: another virtual size."""

import click

from vhdtool.cli.arguments import (
    Size,
    force_option,
    image_argument,
    quiet_option,
    take_dead_lease,
)
from vhdtool.cli.notes import STAYS, note_orphans, read_footer


@click.command()
@image_argument
@click.argument("size", type=Size())
@force_option()
@quiet_option
def resize(image: str, size: int, force_epoch: int | None, quiet: bool) -> None:
    """Change the virtual size of a closed image.

    Before shrinking, the part to be cut is read; it must be zero. After a crash `vhdtool repair`
    restores the old size. Where QEMU would derive another size from the geometry, the image's
    creator is changed to "QEMU with force_size".

    \b
    Example: vhdtool resize disk.vhd 40g
    """
    from vhdtool.image.edit.resize import resize as resize_image
    from vhdtool.vhd.creators import creator_name

    take_dead_lease(image, force_epoch)
    before = read_footer(image)
    if not quiet:
        note_orphans(image, STAYS)
    footer = resize_image(image, size)
    if quiet:
        return
    click.echo(f"{image}: {footer.current_size} bytes")
    if footer.creator != before.creator:
        click.echo(
            f"{image}: the creator is {creator_name(footer)} from now on, was "
            f"{creator_name(before)}: QEMU would take the size from the geometry, and show "
            f"{footer.geometry.size} bytes"
        )
