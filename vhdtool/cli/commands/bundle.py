"""`vhdtool bundle`: code as one file, for the lab's hosts or for a rescue shell."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Path of the file to write."
)
@click.option("--pyz", is_flag=True, help="Write the whole program: `python3 vhdtool.pyz` runs it.")
def bundle(out: Path, pyz: bool) -> None:
    """Pack the code that runs on the lab's hosts into a zip file.

    With --pyz, pack the whole program with all that it needs besides Python 3.11: one file to carry
    to a rescue shell. A link to it that is called vhd-util runs vhd-util. The same sources give the
    same bytes, and an unchanged file is not written again.

    \b
    Example: vhdtool bundle --out build/vhdtool.zip
             vhdtool bundle --pyz --out build/vhdtool.pyz
    """
    from vhdtool.cli.pyz import write_program
    from vhdtool.lab.hosts.bundle import write

    click.echo(f"{out}: {'written' if (write_program if pyz else write)(out) else 'unchanged'}")
