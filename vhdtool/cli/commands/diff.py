"""`vhdtool diff`: two metadata dumps, compared."""

from typing import Any

import click

from vhdtool.cli.arguments import json_option, quiet_option
from vhdtool.cli.commands.meta import metadata_dump
from vhdtool.cli.output import load_json, print_json


@click.command()
@click.argument("before", type=click.Path())
@click.argument("after", type=click.Path())
@click.option("--monotonic", is_flag=True, help="Only what was lost: it must never happen.")
@json_option
@quiet_option
@click.pass_context
def diff(
    context: click.Context, before: str, after: str, monotonic: bool, as_json: bool, quiet: bool
) -> None:
    """Compare the metadata of two images or metadata dumps.

    `vhdtool meta` writes dumps. In one image's life a BAT entry never vanishes or moves and a
    bitmap bit never goes back to 0. Exit codes: 0 nothing found; 1 could not compare; 2 something
    was lost or moved; 3 (without --monotonic) the image only grew.

    \b
    Example: vhdtool diff --monotonic before.json disk.vhd
    """
    from vhdtool.image.metadata.diff import diff_growth, diff_monotonic
    from vhdtool.image.metadata.findings import exit_code

    old, new = _load(before), _load(after)
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
            click.echo("nothing was lost" if monotonic else "no difference")
    context.exit(code)


def _load(path: str) -> dict[str, Any]:
    """A snapshot from a meta file, or taken of an image."""
    with open(path, "rb") as file:
        is_json = file.read(64).lstrip()[:1] == b"{"
    if not is_json:
        return metadata_dump(path)
    loaded: dict[str, Any] = load_json(path)
    return loaded
