"""`vhdtool create` and `vhdtool snapshot`."""

import click

from vhdtool.cli.options import (
    Size,
    force_option,
    note_two_sizes,
    quiet_option,
    take_dead_lease,
)
from vhdtool.errors import UsageError

REAL_BLOCK = 2 << 20


@click.command()
@click.argument("image", type=click.Path())
@click.argument("size", type=Size(), required=False)
@click.option("--fixed", is_flag=True, help="A fixed disk: all its bytes, then the footer.")
@click.option("--parent", type=click.Path(), help="A differencing disk over this image.")
@click.option("--raw-parent", is_flag=True, help="The parent is a raw disk, not a VHD.")
@click.option("--block-size", type=Size(), default=REAL_BLOCK, help="Bytes in a block. [2m]")
@click.option("--batmap/--no-batmap", default=True, help="blktap's batmap (default: with).")
@click.option("--reserve", type=Size(), default=0, help="Room in the BAT for a later size.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
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
    """Create an empty image of SIZE (bytes, or with a suffix k, m, g, t).

    A differencing disk takes its parent's size when none is given. Without a batmap an image
    can be written by QEMU's own vpc driver too.

    \b
    Example: vhdtool create disk.vhd 20g
             vhdtool create --parent disk.vhd child.vhd
    """
    from vhdtool.image.create import empty as maker
    from vhdtool.image.create.differencing import create_child, parent_facts

    if fixed and parent is not None:
        raise UsageError("--fixed and --parent exclude each other")
    if size is None and parent is None:
        raise UsageError(f"{image}: a SIZE is needed, for example 20g")
    if block_size != REAL_BLOCK and not fixed:
        _warn_block(block_size)
    take_dead_lease(image, force_epoch)
    if parent is not None:
        facts = parent_facts(parent, raw_parent)
        footer = create_child(
            image, facts, size, block_size, batmap, overwrite=force, reserve_bytes=reserve
        )
    elif fixed:
        footer = maker.create_fixed(image, size or 0, overwrite=force)
    else:
        footer = maker.create_dynamic(
            image, size or 0, block_size, batmap, overwrite=force, reserve_bytes=reserve
        )
    if not quiet:
        if parent is not None and not raw_parent:
            note_two_sizes(parent)
        click.echo(f"{image}: {footer.type_name}, {footer.current_size} bytes, {footer.uuid}")


def _warn_block(block_size: int) -> None:
    readers = "the real tapdisk" if block_size == 512 << 10 else "the real tapdisk and Windows"
    click.echo(f"vhdtool: note: blocks of {block_size} bytes: {readers} will refuse it", err=True)


@click.command()
@click.argument("parent", type=click.Path())
@click.argument("child", type=click.Path())
@click.option("--raw-parent", is_flag=True, help="The parent is a raw disk, not a VHD.")
@click.option("--limit", type=int, default=30, help="Most images in the chain; 0: any. [30]")
@click.option("--keep-empty", is_flag=True, help="Link to the parent even if it has no block.")
@click.option("--batmap/--no-batmap", default=True, help="blktap's batmap (default: with).")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
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
    """Create CHILD over PARENT: writes go to the child, the parent stays as it is.

    \b
    Example: vhdtool snapshot base.vhd child.vhd
    """
    from vhdtool.image.create import differencing as maker

    take_dead_lease(child, force_epoch)
    footer, real = maker.snapshot(
        parent, child, raw_parent, limit, not keep_empty, force, batmap=batmap
    )
    if not quiet:
        if not raw_parent:
            note_two_sizes(parent)
        click.echo(f"{child}: differencing, {footer.current_size} bytes, over {real}")
