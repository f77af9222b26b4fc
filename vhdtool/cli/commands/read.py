"""`vhdtool read`: guest data, to standard output or a file."""

import json
import sys
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import Size, image_argument
from vhdtool.cli.output import progress_bar
from vhdtool.errors import UsageError

if TYPE_CHECKING:
    from vhdtool.image.salvage.reader import Lost, Salvage


@click.command()
@image_argument
@click.option("--offset", type=Size(), default=0, help="First guest byte.")
@click.option("--length", type=Size(), help="Guest bytes from there.  [default: to the end]")
@click.option("-o", "--output", type=click.Path(), help="A new file; ranges of zeros are holes.")
@click.option("--salvage", is_flag=True, help="From a damaged image: what can be trusted.")
@click.option(
    "--orphans",
    type=click.Path(file_okay=False),
    help="With --salvage: put blocks that no BAT entry names there, a file each.",
)
@click.option("--json", "as_json", is_flag=True, help="With --salvage: the list as JSON.")
@click.pass_context
def read(
    context: click.Context,
    image: str,
    offset: int,
    length: int | None,
    output: str | None,
    salvage: bool,
    orphans: str | None,
    as_json: bool,
) -> None:
    """Read guest data to standard output or a file.

    Sectors that the image lacks come from its parents.

    With --salvage ranges that cannot be trusted become zeros and are listed (on standard error
    when the data goes to standard output); exit code 2 when there are any. Blocks that no BAT entry
    names are listed too (a probable loss); --orphans DIR puts each of them into a file there,
    sparse and as long as a block, and orphans.json says where it was and which sectors it has.

    \b
    Example: vhdtool read --offset 1m --length 4k disk.vhd | xxd
             vhdtool read --salvage broken.vhd -o disk.raw --orphans lost+found
    """
    if salvage:
        context.exit(_salvage(image, offset, length, output, orphans, as_json))
    if orphans is not None:
        raise UsageError("--orphans goes with --salvage only")
    from vhdtool.image.chain.export import export_raw, stream
    from vhdtool.image.chain.open import open_chain
    from vhdtool.image.journal.new_file import new_file

    with open_chain(image) as reader:
        end = reader.size if length is None else min(offset + length, reader.size)
        if output is None:
            stream(reader, sys.stdout.buffer, offset, end)
        else:
            with new_file(output) as target, progress_bar(end - offset, output) as show:
                export_raw(reader, target, offset, end, show)


def _salvage(
    image: str,
    offset: int,
    length: int | None,
    output: str | None,
    orphans: str | None,
    as_json: bool,
) -> int:
    from vhdtool.cli.salvage import export_orphans, report_salvage
    from vhdtool.image.journal.new_file import new_file
    from vhdtool.image.salvage.open import open_salvage

    with open_salvage(image) as source:
        end = source.size if length is None else min(offset + length, source.size)
        if output is None:
            copied, lost = _pipe(source, offset, end)
        else:
            with new_file(output) as target, progress_bar(end - offset, output) as show:
                copied, lost = source.copy(target, offset, end, show)
        if orphans is not None:
            export_orphans(source.orphans, orphans)
    if not as_json:
        return report_salvage(image, source, copied, lost, orphans, err=output is None)
    code = 2 if lost or source.notes or source.orphans else 0
    result = {"image": image, "exit_code": code, "copied": copied, "notes": source.notes}
    result["lost"] = [one.as_dict() for one in lost]
    result["orphans"] = [one.as_dict() for one in source.orphans]
    text = json.dumps(result, indent=2)
    click.echo(text, err=output is None)
    return code


def _pipe(source: "Salvage", start: int, end: int) -> "tuple[int, list[Lost]]":
    """To standard output, where zeros fill what is not there."""
    from vhdtool.image.salvage.reader import Lost, merged

    out, copied, lost, at = sys.stdout.buffer, 0, [], start
    for piece in source.data(start, end):
        if isinstance(piece, Lost):
            lost.append(piece)
            continue
        _zeros(piece[0] - at)
        out.write(piece[1])
        copied += len(piece[1])
        at = piece[0] + len(piece[1])
    _zeros(end - at)
    return copied, merged(lost)


def _zeros(count: int) -> None:
    while count > 0:
        count -= sys.stdout.buffer.write(bytes(min(count, 1 << 20)))
