"""`vhdtool fill`: every block allocated."""

import click

from vhdtool.cli.arguments import force_option, image_argument, quiet_option, take_dead_lease
from vhdtool.cli.notes import STAYS, note_orphans, read_footer
from vhdtool.cli.output import progress_bar


@click.command()
@image_argument
@force_option()
@quiet_option
def fill(image: str, force_epoch: int | None, quiet: bool) -> None:
    """Allocate every block.

    New blocks get the data that the image shows: its parent's, or zeros.

    \b
    Example: vhdtool fill disk.vhd
    """
    from vhdtool.image.edit.coalesce import fill as fill_image

    take_dead_lease(image, force_epoch)
    if not quiet:
        note_orphans(image, STAYS)
    with progress_bar(read_footer(image).current_size, image, quiet) as show:
        new = fill_image(image, show)
    if not quiet:
        click.echo(f"{image}: {new} blocks allocated")
