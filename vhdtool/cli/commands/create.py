"""`vhdtool create`: an empty image."""

import click

from vhdtool.cli.arguments import Size, force_option, quiet_option, take_dead_lease
from vhdtool.cli.notes import note_two_sizes
from vhdtool.errors import UsageError
from vhdtool.vhd.units import size_text

REAL_BLOCK = 2 << 20


@click.command()
@click.argument("image", type=click.Path())
@click.argument("size", type=Size(), required=False)
@click.option("--fixed", is_flag=True, help="A fixed image: all its bytes, then the footer.")
@click.option("--parent", type=click.Path(), help="A differencing image over this one.")
@click.option("--raw-parent", is_flag=True, help="The parent is a raw disk.")
@click.option(
    "--block-size", type=Size(), default=REAL_BLOCK, help="Bytes in a block.  [default: 2m]"
)
@click.option(
    "--batmap/--no-batmap", default=True, help="Whether to write blktap's batmap.  [default: yes]"
)
@click.option(
    "--reserve",
    type=Size(),
    default=0,
    help="Largest size that `resize` can reach without moving blocks.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@force_option("--force-epoch")
@quiet_option
def create(
    image: str,
    size: int | None,
    fixed: bool,
    parent: str | None,
    raw_parent: bool,
    block_size: int,
    batmap: bool,
    reserve: int,
    force: bool,
    force_epoch: int | None,
    quiet: bool,
) -> None:
    """Create an empty image: dynamic, fixed or differencing.

    SIZE is in bytes, or has a suffix k, m, g or t. The default for a differencing image is the size
    of its parent. QEMU's own vpc driver can write to an image only if it has no batmap.

    \b
    Example: vhdtool create disk.vhd 20g
             vhdtool create --parent disk.vhd child.vhd
    """
    from vhdtool.image.create.differencing import create_child, parent_facts
    from vhdtool.image.create.empty import create_dynamic, create_fixed

    if fixed and parent is not None:
        raise UsageError("choose one of --fixed and --parent")
    if size is None and parent is None:
        raise UsageError(f"{image}: give a SIZE, for example 20g")
    if block_size != REAL_BLOCK and not fixed:
        _warn_block(block_size)
    take_dead_lease(image, force_epoch)
    if parent is not None:
        facts = parent_facts(parent, raw_parent)
        footer = create_child(
            image, facts, size, block_size, batmap, overwrite=force, reserve_bytes=reserve
        )
    elif fixed:
        footer = create_fixed(image, size or 0, overwrite=force)
    else:
        footer = create_dynamic(
            image, size or 0, block_size, batmap, overwrite=force, reserve_bytes=reserve
        )
    if not quiet:
        if parent is not None and not raw_parent:
            note_two_sizes(parent)
        click.echo(f"{image}: {footer.type_name}, {size_text(footer.current_size)}, {footer.uuid}")


def _warn_block(block_size: int) -> None:
    readers = "the real tapdisk" if block_size == 512 << 10 else "the real tapdisk and Windows"
    click.echo(f"vhdtool: note: {readers} will refuse blocks of {size_text(block_size)}", err=True)
