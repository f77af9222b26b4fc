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
@click.option("--length", type=Size(), help="Number of guest bytes.  [default: to the end]")
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    help="Write to a new file, with holes for zeros; - is standard output.",
)
@click.option("--salvage", is_flag=True, help="Read what can be trusted of a damaged image.")
@click.option(
    "--orphans",
    type=click.Path(file_okay=False),
    help="With --salvage: export orphan blocks to this directory.",
)
@click.option(
    "--place-orphans",
    is_flag=True,
    help="With --salvage: put orphan blocks where evidence says they belong.",
)
@click.option(
    "--mapfile",
    type=click.Path(),
    help="With --salvage: write the lost ranges as a mapfile of GNU ddrescue.",
)
@click.option("--json", "as_json", is_flag=True, help="With --salvage: print the list as JSON.")
@click.pass_context
def read(
    context: click.Context,
    image: str,
    offset: int,
    length: int | None,
    output: str | None,
    salvage: bool,
    orphans: str | None,
    place_orphans: bool,
    mapfile: str | None,
    as_json: bool,
) -> None:
    """Read guest data to standard output or a file.

    Sectors that are not in the image are read from its parents.

    With --salvage, ranges that cannot be trusted are zeros in the output, and are listed (on
    standard error when the data goes to standard output), as are orphan blocks, which no BAT entry
    names. The exit code is 2 when anything is listed. --orphans DIR exports each orphan block as a
    sparse file; DIR/orphans.json has their sectors in the image and, where known, in the disk.

    --place-orphans is for a lost BAT. It reads all blocks that no entry names, and places those
    whose data states a position (a boot sector, a superblock), and those between them if all
    that are missing there were found. Each is listed with its reason: it is a guess. --mapfile
    marks copied ranges with +, lost ones with - and placed ones with /.

    \b
    Example: vhdtool read --offset 1m --length 4k disk.vhd | xxd
             vhdtool read --salvage broken.vhd -o disk.raw --orphans lost+found
             vhdtool read --salvage broken.vhd -o disk.raw --mapfile disk.map
    """
    output = None if output == "-" else output
    if salvage:
        context.exit(
            _salvage(image, offset, length, output, orphans, place_orphans, mapfile, as_json)
        )
    if orphans is not None or mapfile is not None or place_orphans:
        raise UsageError("--orphans, --place-orphans and --mapfile need --salvage")
    from vhdtool.image.chain.export import export_raw, stream
    from vhdtool.image.chain.open import open_chain
    from vhdtool.image.journal.new_file import new_file

    with open_chain(image) as reader:
        end = _end(reader.size, offset, length)
        if output is None:
            stream(reader, sys.stdout.buffer, offset, end)
        else:
            with new_file(output) as target, progress_bar(end - offset, output) as show:
                export_raw(reader, target, offset, end, show)


def _end(size: int, offset: int, length: int | None) -> int:
    if offset > size:
        raise UsageError(f"--offset {offset}: the disk ends at byte {size}")
    return size if length is None else min(offset + length, size)


def _salvage(
    image: str,
    offset: int,
    length: int | None,
    output: str | None,
    orphans: str | None,
    place_orphans: bool,
    mapfile: str | None,
    as_json: bool,
) -> int:
    from vhdtool.cli.salvage import export_orphans, report_salvage, write_mapfile
    from vhdtool.image.journal.new_file import new_file
    from vhdtool.image.salvage.open import open_salvage

    with open_salvage(image, place_orphans) as source:
        end = _end(source.size, offset, length)
        if output is None:
            copied, lost = _copy_to_stdout(source, offset, end)
        else:
            with new_file(output) as target, progress_bar(end - offset, output) as show:
                copied, lost = source.copy(target, offset, end, show)
        if orphans is not None:
            export_orphans(source.orphans, orphans)
        if mapfile is not None:
            write_mapfile(mapfile, source, lost, offset, end)
    if not as_json:
        return report_salvage(image, source, copied, lost, orphans, err=output is None)
    code = 2 if lost else source.exit_code
    result = {"image": image, "exit_code": code, "copied": copied, "notes": source.notes}
    result["lost"] = [one.as_dict() for one in lost]
    result["orphans"] = [one.as_dict() for one in source.orphans]
    result["placed"] = [one.as_dict() for one in source.placed]
    text = json.dumps(result, indent=2)
    click.echo(text, err=output is None)
    return code


def _copy_to_stdout(source: "Salvage", start: int, end: int) -> "tuple[int, list[Lost]]":
    """Copy to standard output, with zeros for ranges without data."""
    from vhdtool.image.salvage.reader import Lost, merge_lost

    out, copied, lost, position = sys.stdout.buffer, 0, [], start
    for piece in source.data(start, end):
        if isinstance(piece, Lost):
            lost.append(piece)
            continue
        _write_zeros(piece[0] - position)
        out.write(piece[1])
        copied += len(piece[1])
        position = piece[0] + len(piece[1])
    _write_zeros(end - position)
    return copied, merge_lost(lost)


def _write_zeros(count: int) -> None:
    while count > 0:
        count -= sys.stdout.buffer.write(bytes(min(count, 1 << 20)))
