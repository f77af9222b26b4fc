"""`vhdtool map`: which ranges of the disk are allocated, and where."""

from typing import TYPE_CHECKING, Any

import click

from vhdtool.cli.arguments import Size, image_argument, json_option
from vhdtool.cli.output import print_json

if TYPE_CHECKING:
    from vhdtool.image.chain.layers import Extent, Reader


@click.command("map")
@image_argument
@click.option("--offset", type=Size(), default=0, help="First guest byte.")
@click.option("--length", type=Size(), help="Number of guest bytes.  [default: to the end]")
@json_option
def map_(image: str, offset: int, length: int | None, as_json: bool) -> None:
    """Show allocated ranges, their layer and their offset.

    Depth 0 is the image itself, 1 its parent. --json prints the keys of `qemu-img map`.

    \b
    Example: vhdtool map --json disk.vhd
    """
    from vhdtool.image.chain.open import open_chain

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
    offset = {"offset": one.offset} if data else {}
    return {
        "start": one.start,
        "length": one.length,
        "depth": one.depth,
        "present": data,
        "zero": not data,
        "data": data,
        **offset,
        "filename": reader.layers[one.depth].name,
    }
