"""`vhdtool guest` and `vhdtool bundle`: what the playbooks bring to the hosts."""

from pathlib import Path

import click


@click.group()
def guest() -> None:
    """The guest that migrates: a Debian kernel and a small initramfs."""


@guest.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to fill.")
def build(out: Path) -> None:
    """Make vmlinuz and initrd.img from Debian packages, downloaded and not installed.

    Does nothing when they are there already for the same packages.

    Example: vhdtool guest build --out ~/.cache/vhdlab/guest
    """
    from vhdtool.lab.guest.build import build as make

    for path in make(out, click.echo):
        click.echo(path)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Zip file to write.")
def bundle(out: Path) -> None:
    """Pack what runs on the hosts: the shim, the agent and what they use.

    The same sources give the same bytes, and an unchanged file is left as it is.

    Example: vhdtool bundle --out build/vhdtool.zip
    """
    from vhdtool.lab.hosts.bundle import write

    click.echo(f"{out}: {'written' if write(out) else 'unchanged'}")
