"""`vhdtool resize`, `coalesce`, `fill` and `modify`: they write to images that nobody has open."""

from typing import TYPE_CHECKING
from uuid import UUID

import click

from vhdtool.cli.options import (
    Size,
    force_option,
    image_argument,
    quiet_option,
    take_dead_lease,
)
from vhdtool.cli.orphans import IN_PLACE, note_coalesced, note_orphans
from vhdtool.cli.progress import progress_bar
from vhdtool.errors import UsageError

if TYPE_CHECKING:
    from vhdtool.vhd.footer import Footer


@click.command()
@image_argument
@click.argument("size", type=Size())
@force_option()
@quiet_option
def resize(image: str, size: int, force_epoch: int | None, quiet: bool) -> None:
    """Give a closed image another virtual SIZE.

    Shrinking reads what would be cut, and refuses when any of it is not zero. After a crash
    `vhdtool repair` brings the old size back. Where QEMU would take the new size from the geometry,
    and the geometry has another one, the image's creator becomes "QEMU with force_size".

    \b
    Example: vhdtool resize disk.vhd 40g
    """
    from vhdtool.image.edit.resize import resize as work
    from vhdtool.vhd.creators import creator_name

    take_dead_lease(image, force_epoch)
    before = _footer(image)
    if not quiet:
        note_orphans(image, IN_PLACE)
    footer = work(image, size)
    if quiet:
        return
    click.echo(f"{image}: {footer.current_size} bytes")
    if footer.creator != before.creator:
        click.echo(
            f"{image}: the creator is {creator_name(footer)} from now on, was "
            f"{creator_name(before)}: QEMU would take the size from the geometry, and show "
            f"{footer.geometry.size} bytes"
        )


@click.command()
@image_argument
@click.option("--into", type=click.Path(), help="An ancestor.  [default: the parent]")
@click.option("--all", "whole", is_flag=True, help="The whole chain into its oldest image.")
@force_option()
@quiet_option
def coalesce(
    image: str, into: str | None, whole: bool, force_epoch: int | None, quiet: bool
) -> None:
    """Write what a child has into its parent. The child stays as it is.

    It can be interrupted and run again at any time: what the child shows never changes. Other
    children of the parent would change: there must be none.

    \b
    Example: vhdtool coalesce child.vhd
    """
    from vhdtool.image.edit.coalesce import ancestor_of
    from vhdtool.image.edit.coalesce import coalesce as work

    if into is not None and whole:
        raise UsageError("--into and --all exclude each other")
    if force_epoch is not None:
        take_dead_lease(ancestor_of(image, into, whole), force_epoch)
    if not quiet:
        note_coalesced(image, into, whole)
    with progress_bar(_virtual_size(image), image, quiet) as show:
        done = work(image, into, whole, show)
    if not quiet:
        click.echo(f"{done.name}: now has all that {image} shows, which may be removed")


@click.command()
@image_argument
@force_option()
@quiet_option
def fill(image: str, force_epoch: int | None, quiet: bool) -> None:
    """Allocate every block, with the data that the image shows.

    \b
    Example: vhdtool fill disk.vhd
    """
    from vhdtool.image.edit.coalesce import fill as work

    take_dead_lease(image, force_epoch)
    if not quiet:
        note_orphans(image, IN_PLACE)
    with progress_bar(_virtual_size(image), image, quiet) as show:
        new = work(image, show)
    if not quiet:
        click.echo(f"{image}: {new} blocks allocated")


def _virtual_size(image: str) -> int:
    return _footer(image).current_size


def _footer(image: str) -> "Footer":
    from vhdtool.image.metadata.read import read_metadata
    from vhdtool.storage import FileStorage

    with FileStorage(image) as storage:
        return read_metadata(storage).footer


@click.command()
@image_argument
@click.option("--parent", type=click.Path(), help="Where the parent is now.")
@click.option("--raw-parent", is_flag=True, help="The parent is a raw disk, not a VHD.")
@click.option("--other-disk", is_flag=True, help="Take a parent of another uuid, on purpose.")
@click.option("--hidden/--visible", default=None, help="blktap's flag for storage managers.")
@click.option("--uuid", type=click.UUID, help="Another uuid. Children of the image lose it.")
@click.option("--timestamp", type=int, help="Unix seconds.")
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
    """Change what a closed image says about itself; guest data stays as it is.

    --parent says where the parent is now. A file that is another disk, by its uuid, is refused:
    the image would show that disk wherever it has no data of its own.

    \b
    Example: vhdtool modify child.vhd --parent ../base.vhd
    """
    from vhdtool.image.edit.modify import modify_footer, modify_parent
    from vhdtool.vhd.units import vhd_time

    if parent is None and hidden is None and uuid is None and timestamp is None:
        raise UsageError("nothing to change: see `vhdtool modify --help`")
    take_dead_lease(image, force_epoch)
    if parent is not None:
        modify_parent(image, parent, raw_parent, other_disk)
    if hidden is not None or uuid is not None or timestamp is not None:
        stamp = None if timestamp is None else vhd_time(timestamp)
        modify_footer(image, hidden, uuid, stamp)
    if not quiet:
        click.echo(f"{image}: changed")
