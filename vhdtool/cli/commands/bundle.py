"""`vhdtool bundle`: the code that runs on the hosts, as one zip file."""

from pathlib import Path

import click


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Zip file to write.")
def bundle(out: Path) -> None:
    """Pack the code that runs on the lab's hosts into a zip file.

    The same sources give the same bytes, and an unchanged file is not written again.

    Example: vhdtool bundle --out build/vhdtool.zip
    """
    from vhdtool.lab.hosts.bundle import write

    click.echo(f"{out}: {'written' if write(out) else 'unchanged'}")
