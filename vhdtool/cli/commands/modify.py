"""`vhdtool modify`: an image's metadata, without its guest data."""

from uuid import UUID

import click

from vhdtool.cli.arguments import force_option, image_argument, quiet_option, take_dead_lease
from vhdtool.errors import UsageError


@click.command()
@image_argument
@click.option("--parent", type=click.Path(), help="New path of the parent.")
@click.option("--raw-parent", is_flag=True, help="The parent is a raw disk.")
@click.option("--other-disk", is_flag=True, help="Accept a parent with another UUID.")
@click.option(
    "--hidden/--visible", default=None, help="Set or clear blktap's flag for storage managers."
)
@click.option("--uuid", type=click.UUID, help="New UUID. Children of the image no longer find it.")
@click.option("--timestamp", type=int, help="Time stamp in Unix seconds.")
@force_option()
@quiet_option
def modify(
    image: str,
    parent: str | None,
    raw_parent: bool,
    other_disk: bool,
    hidden: bool | None,
    uuid: UUID | None,
    timestamp: int | None,
    force_epoch: int | None,
    quiet: bool,
) -> None:
    """Change a closed image's parent, hidden flag, UUID or time stamp.

    Guest data stays as it is. --parent sets the path of the parent. A parent with another UUID is
    refused: the image would show the data of a different disk.

    \b
    Example: vhdtool modify child.vhd --parent ../base.vhd
    """
    from vhdtool.image.edit.modify import modify_footer, modify_parent
    from vhdtool.vhd.units import vhd_time

    if parent is None and hidden is None and uuid is None and timestamp is None:
        raise UsageError("nothing to change; see `vhdtool modify --help`")
    take_dead_lease(image, force_epoch)
    if parent is not None:
        modify_parent(image, parent, raw_parent, other_disk)
    if hidden is not None or uuid is not None or timestamp is not None:
        stamp = None if timestamp is None else vhd_time(timestamp)
        modify_footer(image, hidden, uuid, stamp)
    if not quiet:
        click.echo(f"{image}: changed")
