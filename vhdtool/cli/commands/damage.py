"""`vhdtool damage`: the guest sectors, partitions and files that damage affects."""

from functools import partial

import click

from vhdtool.cli.arguments import image_argument, json_option
from vhdtool.cli.notes import orphans_text
from vhdtool.cli.output import load_json, print_json
from vhdtool.cli.salvage import lost_lines, orphan_lines
from vhdtool.errors import UsageError
from vhdtool.image.salvage.damage import Damage, find_damage, merged
from vhdtool.image.salvage.files import sectors
from vhdtool.image.salvage.reader import Lost
from vhdtool.vhd.units import SECTOR, size_text


@click.command()
@image_argument
@click.option(
    "--findings",
    type=click.Path(allow_dash=True),
    help="Output of `check --json` or `diff --json`; without it the image is checked.",
)
@click.option("--files/--no-files", default=True, help="Whether to name files.  [default: yes]")
@json_option
@click.pass_context
def damage(
    context: click.Context, image: str, findings: str | None, files: bool, as_json: bool
) -> None:
    """Show which guest sectors, partitions and files damage affects.

    Names files of ext, NTFS and FAT. An orphan block, which no BAT entry names, counts as damage
    where its position in the disk is known.

    \b
    Exit codes: 0 no damage; 1 failed; 2 damage

    \b
    Example: vhdtool damage disk.vhd
             vhdtool diff --json before.json disk.vhd | vhdtool damage disk.vhd --findings -
    """
    earlier = None if findings is None else partial(_from_findings, findings)
    result = find_damage(image, files, earlier)
    if as_json:
        print_json(result.as_dict())
    else:
        _show(result)
    context.exit(result.exit_code)


def _from_findings(path: str, size: int) -> list[Lost]:
    loaded = load_json(path)
    found = []
    try:
        for one in loaded["findings"]:
            if one["severity"] == "corrupt" and one["sectors"] is not None:
                first, count = (int(number) for number in one["sectors"])
                start, end = first * SECTOR, min((first + count) * SECTOR, size)
                if start < end:
                    found.append(Lost(start, end - start, f"{one['code']}: {one['message']}"))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path}: not the output of `check --json` or `diff --json`") from None
    return found


def _show(result: Damage) -> None:
    for note in result.notes:
        click.echo(f"note: {note}")
    for line in [*lost_lines(result.lost), *orphan_lines(result.orphans)]:
        click.echo(line)
    for hit in result.partitions:
        part = hit.partition
        name = f"partition {part.number}" if part.number else "the disk"
        click.echo(
            f"{name} ({part.name}, {part.system or 'file system unknown'}): "
            f"{size_text(hit.damaged)} damaged"
        )
        for file in hit.files:
            click.echo(f"  {file.path}: {file.damaged} of {file.size} bytes")
        rest = hit.damaged - sum(one.damaged for one in hit.files)
        if hit.note is not None:
            click.echo(f"  files: {hit.note}")
        elif hit.files and rest > 0:
            click.echo(f"  no file: {rest} bytes (free, slack, or the file system's own)")
        elif not hit.files:
            click.echo("  no file: free space, or the file system's own")
    total = sum(stop - first for first, stop in merged(result.lost))
    text = f"{result.image}: {sectors(total)} guest sectors are lost or in doubt"
    if result.orphans:
        text += f"; {orphans_text(len(result.orphans))}: see `vhdtool read --salvage --orphans`"
    click.echo(text)
