"""`vhdtool meta`: a metadata dump as one line of JSON."""

import json
from typing import Any

import click

from vhdtool.cli.arguments import image_argument


@click.command()
@image_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    help="Write to this file instead of standard output.",
)
def meta(image: str, output: str | None) -> None:
    """Print all metadata of an image as one line of JSON.

    The image may be in use.

    \b
    Example: vhdtool meta disk.vhd > before.json
    """
    text = json.dumps(metadata_dump(image), separators=(",", ":"))
    if output in (None, "-"):
        click.echo(text)
    else:
        with open(output, "w", encoding="ascii") as file:
            file.write(text + "\n")


def metadata_dump(image: str) -> dict[str, Any]:
    from vhdtool.image.metadata.dump import dump_metadata
    from vhdtool.storage import FileStorage

    with FileStorage(image) as storage:
        return dump_metadata(storage)
