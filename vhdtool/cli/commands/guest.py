"""`vhdtool guest`: the guest that migrates."""

from pathlib import Path

import click


@click.group()
def guest() -> None:
    """Build the guest that migrates.

    It has a Debian kernel and a small initramfs.
    """


@guest.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to fill.")
def build(out: Path) -> None:
    """Build vmlinuz and initrd.img from Debian packages.

    The packages are downloaded and not installed. Files that were built from the same packages are
    kept.

    Example: vhdtool guest build --out ~/.cache/vhdlab/guest
    """
    from vhdtool.lab.guest.build import build as build_guest

    for path in build_guest(out, click.echo):
        click.echo(path)
