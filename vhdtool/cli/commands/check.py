"""`vhdtool check`: the faults of an image and its parents."""

from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import image_argument, json_option, quiet_option
from vhdtool.cli.notes import orphans_text
from vhdtool.cli.output import print_json

if TYPE_CHECKING:
    from vhdtool.image.chain.check import ChainReport


@click.command()
@image_argument
@click.option(
    "--strict", "mode", flag_value="strict", default=True, help="The image is closed.  [default]"
)
@click.option(
    "--unclean",
    "mode",
    flag_value="unclean",
    help="The image's host crashed: a missing footer is no fault.",
)
@click.option(
    "--live", "mode", flag_value="live", help="The image is in use: it may grow meanwhile."
)
@click.option(
    "--bitmaps/--no-bitmaps",
    default=True,
    help="Whether to read each block's bitmap.  [default: yes]",
)
@click.option(
    "--parents/--no-parents", default=True, help="Whether to check the parents.  [default: yes]"
)
@json_option
@quiet_option
@click.pass_context
def check(
    context: click.Context,
    image: str,
    mode: str,
    bitmaps: bool,
    parents: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check an image and explain each fault.

    Writes nothing. Orphan blocks (blocks that no BAT entry names) are a probable loss of data.

    \b
    Exit codes:
      0  consistent
      1  the check failed
      2  corrupt
      3  unclean, leaked space or orphan blocks; all blocks that the BAT names are consistent

    \b
    Example: vhdtool check --unclean disk.vhd
    """
    from vhdtool.image.chain.check import check_chain

    report = check_chain(image, mode, bitmaps, parents)  # type: ignore[arg-type]
    if as_json:
        print_json(report.as_dict())
    elif not quiet:
        _print_report(report)
    context.exit(report.exit_code)


def _print_report(report: "ChainReport") -> None:
    for finding in report.links:
        click.echo(f"{finding.severity}: {finding.code}: {finding.message}")
    for one in report.reports:
        for finding in one.findings:
            position = ""
            if finding.offset is not None:
                position = f" (byte {finding.offset})"
            guest = ""
            if finding.sectors is not None:
                first, count = finding.sectors
                guest = f"; guest sectors {first} to {first + count - 1}"
            click.echo(f"{finding.severity}: {finding.code}: {finding.message}{position}{guest}")
        text = f"{one.name}: {report.verdict_of(one)}"
        if one.blocks:
            text += f", {one.allocated} of {one.blocks} blocks allocated"
        if one.orphans:
            text += f"; {orphans_text(len(one.orphans))}"
        click.echo(text)
    for line in report.advice():
        click.echo(f"help: {line}")
