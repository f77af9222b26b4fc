"""`vhdtool snapshot`: a child over a parent."""

import click

from vhdtool.cli.arguments import force_option, quiet_option, take_dead_lease
from vhdtool.cli.notes import note_two_sizes
from vhdtool.vhd.units import size_text


@click.command()
@click.argument("parent", type=click.Path())
@click.argument("child", type=click.Path())
@click.option("--raw-parent", is_flag=True, help="The parent is a raw disk.")
@click.option("--limit", type=int, default=30, help="Longest chain allowed; 0: any.  [default: 30]")
@click.option("--keep-empty", is_flag=True, help="Link to the parent even if it has no data.")
@click.option(
    "--batmap/--no-batmap", default=True, help="Whether to write blktap's batmap.  [default: yes]"
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@force_option("--force-epoch")
@quiet_option
def snapshot(
    parent: str,
    child: str,
    raw_parent: bool,
    limit: int,
    keep_empty: bool,
    batmap: bool,
    force: bool,
    force_epoch: int | None,
    quiet: bool,
) -> None:
    """Create a child image over a parent.

    Writes go to the child; the parent stays as it is.

    \b
    Example: vhdtool snapshot base.vhd child.vhd
    """
    from vhdtool.image.create.differencing import snapshot as create_snapshot

    take_dead_lease(child, force_epoch)
    footer, real = create_snapshot(
        parent, child, raw_parent, limit, not keep_empty, force, batmap=batmap
    )
    if not quiet:
        if not raw_parent:
            note_two_sizes(parent)
        click.echo(f"{child}: differencing, {size_text(footer.current_size)}, over {real}")
