"""`vhdtool create`."""

import click

from vhdtool.cli.options import Size, quiet_option


@click.command()
@click.argument("image", type=click.Path())
@click.argument("size", type=Size())
@click.option("--block-size", type=Size(), default=2 << 20, help="Bytes in a block.  [default: 2m]")
@click.option("--batmap/--no-batmap", default=True, help="blktap's batmap (default: with).")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@quiet_option
def create(image: str, size: int, block_size: int, batmap: bool, force: bool, quiet: bool) -> None:
    """Create an empty image of SIZE (bytes, or with a suffix k, m, g, t).

    Without a batmap an image can be written by QEMU's own vpc driver too.

    \b
    Example: vhdtool create disk.vhd 20g
    """
    from vhdtool.image.create import create_dynamic

    footer = create_dynamic(image, size, block_size, batmap, overwrite=force)
    if not quiet:
        click.echo(f"{image}: {footer.type_name}, {footer.current_size} bytes, {footer.uuid}")
