"""`vhdtool map` and `vhdtool read`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from vhdtool.cli.options import Size, image_argument, json_option, print_json

if TYPE_CHECKING:
    from vhdtool.image.reader import Extent, Reader


@click.command("map")
@image_argument
@click.option("--offset", type=Size(), default=0, help="First guest byte.")
@click.option("--length", type=Size(), help="Guest bytes from there.  [default: to the end]")
@json_option
def map_(image: str, offset: int, length: int | None, as_json: bool) -> None:
    """Show which ranges of the disk are present, in which layer and where in its file.

    Depth 0 is the image itself, 1 its parent. `--json` has the keys of `qemu-img map`.

    \b
    Example: vhdtool map --json disk.vhd
    """
    from vhdtool.image.chain import open_chain

    with open_chain(image) as reader:
        end = reader.size if length is None else offset + length
        if as_json:
            print_json([_entry(reader, one) for one in reader.merged(offset, end)])
            return
        click.echo(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
        for one in reader.merged(offset, end):
            if one.offset is not None:
                name = reader.layers[one.depth].name
                click.echo(f"0x{one.start:<14x}0x{one.length:<14x}0x{one.offset:<14x}{name}")


def _entry(reader: "Reader", one: "Extent") -> dict[str, Any]:
    data = one.offset is not None
    place = {"offset": one.offset} if data else {}
    return {
        "start": one.start,
        "length": one.length,
        "depth": one.depth,
        "present": data,
        "zero": not data,
        "data": data,
        **place,
        "filename": reader.layers[one.depth].name,
    }


@click.command()
@image_argument
@click.option("--offset", type=Size(), default=0, help="First guest byte.")
@click.option("--length", type=Size(), help="Guest bytes from there.  [default: to the end]")
@click.option("-o", "--output", type=click.Path(), help="A new file; ranges of zeros are holes.")
def read(image: str, offset: int, length: int | None, output: str | None) -> None:
    """Read guest data, through all parents, to standard output or a file.

    \b
    Example: vhdtool read --offset 1m --length 4k disk.vhd | xxd
    """
    from vhdtool.image.chain import open_chain
    from vhdtool.image.export import export_raw, stream
    from vhdtool.storage import FileStorage

    with open_chain(image) as reader:
        end = reader.size if length is None else min(offset + length, reader.size)
        if output is None:
            stream(reader, sys.stdout.buffer, offset, end)
        else:
            with FileStorage(output, create=True) as target:
                export_raw(reader, target, offset, end)
                target.flush()
