"""`vhdtool coalesce`: a child's data into its parent."""

import click

from vhdtool.cli.arguments import force_option, image_argument, quiet_option, take_dead_lease
from vhdtool.cli.notes import note_coalesced, read_footer
from vhdtool.cli.output import progress_bar
from vhdtool.errors import UsageError


@click.command()
@image_argument
@click.option("--into", type=click.Path(), help="The ancestor to write to.  [default: the parent]")
@click.option("--all", "whole", is_flag=True, help="Write the whole chain into its base.")
@force_option()
@quiet_option
def coalesce(
    image: str, into: str | None, whole: bool, force_epoch: int | None, quiet: bool
) -> None:
    """Write a child's data into its parent.

    The child stays as it is, and shows the same data at any time, so an interrupted coalesce can be
    run again. The parent must have no other children: their data would change.

    \b
    Example: vhdtool coalesce child.vhd
    """
    from vhdtool.image.edit.coalesce import ancestor_of
    from vhdtool.image.edit.coalesce import coalesce as coalesce_image

    if into is not None and whole:
        raise UsageError("choose one of --into and --all")
    if force_epoch is not None:
        take_dead_lease(ancestor_of(image, into, whole), force_epoch)
    if not quiet:
        note_coalesced(image, into, whole)
    with progress_bar(read_footer(image).current_size, image, quiet) as show:
        done = coalesce_image(image, into, whole, show)
    if not quiet:
        click.echo(f"{done.name}: has the data of {image}, which may be removed")
