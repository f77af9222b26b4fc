"""`vhdtool diff`: two metadata dumps, compared."""

from typing import Any

import click

from vhdtool.cli.arguments import json_option, quiet_option
from vhdtool.cli.commands.meta import metadata_dump
from vhdtool.cli.output import load_json, print_json


@click.command()
@click.argument("before", type=click.Path(allow_dash=True))
@click.argument("after", type=click.Path(allow_dash=True))
@click.option("--monotonic", is_flag=True, help="Report losses only, not growth.")
@json_option
@quiet_option
@click.pass_context
def diff(
    context: click.Context, before: str, after: str, monotonic: bool, as_json: bool, quiet: bool
) -> None:
    """Compare the metadata of two images or metadata dumps.

    `vhdtool meta` writes metadata dumps. In the life of an image a BAT entry never disappears or
    moves, and a bit of a sector bitmap is never cleared.

    \b
    Exit codes:
      0  no difference
      1  the comparison failed
      2  an entry or a bit is lost, or an entry has moved
      3  the image has only grown (not with --monotonic)

    \b
    Example: vhdtool diff --monotonic before.json disk.vhd
    """
    from vhdtool.image.metadata.diff import diff_growth, diff_monotonic
    from vhdtool.image.metadata.findings import exit_code

    old, new = _load_dump(before), _load_dump(after)
    lost = diff_monotonic(old, new)
    grown = [] if monotonic else diff_growth(old, new)
    code = exit_code(lost) or (3 if grown else 0)
    if as_json:
        result = {"exit_code": code, "findings": [f.as_dict() for f in lost + grown]}
        print_json(result)
    elif not quiet:
        for finding in lost + grown:
            click.echo(f"{finding.severity}: {finding.code}: {finding.message}")
        if not lost and not grown:
            click.echo("nothing is lost" if monotonic else "no difference")
    context.exit(code)


def _load_dump(path: str) -> dict[str, Any]:
    """Load a metadata dump from a file, or from standard input for `-`; or take one of an image."""
    if path != "-":
        with open(path, "rb") as file:
            is_json = file.read(64).lstrip()[:1] == b"{"
        if not is_json:
            return metadata_dump(path)
    loaded: dict[str, Any] = load_json(path)
    return loaded
