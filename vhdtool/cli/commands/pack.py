"""`vhdtool pack`: the images of a run without holes, for tools that do not know sparse files."""

from pathlib import Path

import click

from vhdtool.vhd.units import size_text

EPILOG = """\b
Examples:
  vhdtool pack runs/latest
  vhdtool pack runs/latest/overlap-off-s1
  vhdtool pack --undo runs/latest
"""


@click.command(epilog=EPILOG)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--undo", is_flag=True, help="Restore the sparse images.")
def pack(directory: Path, undo: bool) -> None:
    """Pack the images of a run, or of one case of it, in place.

    An image is a sparse file: of gigabytes in size, it uses megabytes. `tar`, `cp` and stores of
    artefacts may count or copy the holes. image.vhd becomes image.vhd.packed, which has the data
    alone, compressed. `vhdtool judge` reads it as it is and comes to the same verdict; other tools
    need `--undo` first. An image is removed only after its packed one was read back and compared.
    """
    from vhdtool.oracle.packing import pack_run, unpack_run

    done = (unpack_run if undo else pack_run)(directory)
    for name in done.left:
        click.echo(f"{name}: left as it is; it has no case.json, so it may be under way", err=True)
    verb = "unpacked" if undo else "packed"
    if not done.images:
        click.echo(f"{directory}: no image to be {verb}")
        return
    images = "1 image" if done.images == 1 else f"{done.images} images"
    click.echo(
        f"{directory}: {images} {verb}; of {size_text(done.before)} there are now "
        f"{size_text(done.after)}"
    )
