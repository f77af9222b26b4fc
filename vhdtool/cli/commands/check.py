"""`vhdtool check`: the faults of images and their parents."""

from functools import partial
from typing import TYPE_CHECKING, cast

import click

from vhdtool.cli.arguments import json_option, quiet_option
from vhdtool.cli.findings import (
    checked,
    colored,
    finding_lines,
    next_steps,
    summary_lines,
    worst,
)
from vhdtool.cli.notes import orphans_text
from vhdtool.cli.output import print_json

if TYPE_CHECKING:
    from vhdtool.image.chain.check import ChainReport
    from vhdtool.image.check.image import Mode


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="IMAGE...")
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
    images: tuple[str, ...],
    mode: str,
    bitmaps: bool,
    parents: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check images and explain each fault.

    Writes nothing. Of one image all faults are printed, of several a line each; the last line says
    what to do next. Orphan blocks (blocks that no BAT entry names) are a probable loss of data.

    \b
    Exit codes; of several images the worst one counts, in the order 2, 1, 3, 0:
      0  consistent
      1  the check failed
      2  corrupt
      3  unclean, leaked space or orphan blocks; all blocks that the BAT names are consistent

    \b
    Example: vhdtool check --unclean disk.vhd
             vhdtool check /srv/images/*.vhd
    """
    from vhdtool.image.chain.check import check_chain

    if len(images) > 1:
        context.exit(_check_many(images, mode, bitmaps, parents, as_json, quiet))
    report = check_chain(images[0], mode, bitmaps, parents)  # type: ignore[arg-type]
    if as_json:
        print_json(report.as_dict())
    elif not quiet:
        _print_report(report)
    context.exit(report.exit_code)


def _check_many(
    images: tuple[str, ...], mode: str, bitmaps: bool, parents: bool, as_json: bool, quiet: bool
) -> int:
    from vhdtool.image.chain.check import Known, check_chain

    # Images of one tree share parents.
    known: Known = {}
    check_one = partial(
        check_chain, mode=cast("Mode", mode), bitmaps=bitmaps, parents=parents, known=known
    )
    verdicts = []
    for image in images:
        one = checked(image, partial(check_one, image), as_json)
        verdicts.append(one)
        if not as_json and not quiet:
            click.echo(one.line())
    if as_json:
        print_json([one.as_dict() for one in verdicts])
    elif not quiet:
        for line in summary_lines(verdicts):
            click.echo(line)
    return worst(one.exit_code for one in verdicts)


def _print_report(report: "ChainReport") -> None:
    for line in finding_lines(report.links):
        click.echo(line)
    for one in report.reports:
        for line in finding_lines(one.findings):
            click.echo(line)
        text = f"{one.name}: {colored(report.verdict_of(one))}"
        if one.blocks:
            text += f", {one.allocated} of {one.blocks} blocks allocated"
        if one.orphans:
            text += f"; {orphans_text(len(one.orphans))}"
        click.echo(text)
    for line in next_steps(report.advice()):
        click.echo(line)
