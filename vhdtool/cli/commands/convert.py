"""`vhdtool convert`: between VHD, raw, qcow2 and VHDX."""

from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import Size, force_option, quiet_option, take_dead_lease
from vhdtool.cli.notes import NOT_COPIED, note_orphans, note_two_sizes
from vhdtool.cli.output import progress_bar
from vhdtool.errors import UsageError

if TYPE_CHECKING:
    from vhdtool.image.chain.layers import Reader
    from vhdtool.image.create.convert import Format

FORMATS = click.Choice(["vpc", "vhd", "raw", "qcow2", "vhdx"])


@click.command()
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@click.option(
    "-f", "--format", "source_format", type=FORMATS, help="Format of IN.  [default: its content]"
)
@click.option("-O", "target_format", type=FORMATS, help="Format of OUT.  [default: its suffix]")
@click.option("--fixed", is_flag=True, help="Write a fixed VHD, not a dynamic one.")
@click.option("--block-size", type=Size(), default=2 << 20, help="Bytes in a block.  [default: 2m]")
@click.option(
    "--batmap/--no-batmap", default=True, help="Whether to write blktap's batmap.  [default: yes]"
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--salvage", is_flag=True, help="Convert what can be trusted of a damaged VHD.")
@click.option(
    "--place-orphans",
    is_flag=True,
    help="With --salvage: put orphan blocks where evidence says they belong.",
)
@force_option("--force-epoch")
@quiet_option
@click.pass_context
def convert(
    context: click.Context,
    source: str,
    target: str,
    source_format: str | None,
    target_format: str | None,
    fixed: bool,
    block_size: int,
    batmap: bool,
    force: bool,
    salvage: bool,
    place_orphans: bool,
    force_epoch: int | None,
    quiet: bool,
) -> None:
    """Convert between VHD, raw, qcow2 and VHDX.

    Holes and blocks of zeros are not allocated in the output, and a VHD is written without its
    parents. The virtual size is that of the input. qcow2 and VHDX need qemu-img.

    A damaged VHD is refused. With --salvage, ranges that cannot be trusted become zeros and are
    listed; the exit code is 2 when there are any.

    \b
    Example: vhdtool convert disk.raw disk.vhd
             vhdtool convert --salvage broken.vhd repaired.vhd
    """
    from vhdtool.image.chain.detect import NAMES, guess_input, guess_output
    from vhdtool.image.chain.open import open_chain
    from vhdtool.image.create.convert import convert as convert_image

    take_dead_lease(target, force_epoch)
    kind = NAMES[source_format] if source_format else guess_input(source)
    wanted = NAMES[target_format] if target_format else guess_output(target)
    if salvage:
        if kind != "vpc" or wanted not in ("vpc", "raw"):
            raise UsageError("--salvage converts a VHD to a VHD or a raw disk")
        form = _form(wanted, fixed)
        context.exit(_salvage(source, target, form, block_size, batmap, force, place_orphans))
    if place_orphans:
        raise UsageError("--place-orphans needs --salvage")
    if not quiet:
        _note_writer(source)
        if kind == "vpc":
            note_two_sizes(source)
    if kind in ("qcow2", "vhdx") or wanted in ("qcow2", "vhdx"):
        size = _through_qemu(source, kind, target, wanted, block_size, batmap, force, quiet)
        if not quiet:
            click.echo(f"{target}: {wanted}, {size} bytes")
        return
    form = _form(wanted, fixed)
    with (
        open_chain(source, raw=kind == "raw") as reader,
        progress_bar(reader.size, target, quiet) as show,
    ):
        if not quiet:
            _note_layers(reader)
        size = convert_image(reader, target, form, block_size, batmap, force, show)
    if not quiet:
        click.echo(f"{target}: {form}, {size} bytes")


def _note_writer(source: str) -> None:
    from vhdtool.leases.claim import writer_of

    if who := writer_of(source):
        click.echo(f"vhdtool: note: {who}; the copy may be inconsistent", err=True)


def _note_layers(reader: "Reader") -> None:
    """Note the orphan blocks of each layer, which a copy does not have."""
    for layer in reader.layers:
        if layer.layout is not None:
            note_orphans(layer.name, NOT_COPIED)


def _form(wanted: str, fixed: bool) -> "Format":
    return "raw" if wanted == "raw" else "fixed" if fixed else "dynamic"


def _salvage(
    source: str,
    target: str,
    form: "Format",
    block_size: int,
    batmap: bool,
    force: bool,
    place_orphans: bool,
) -> int:
    from vhdtool.cli.salvage import report_salvage
    from vhdtool.image.salvage.open import open_salvage

    with open_salvage(source, place_orphans) as salvage, progress_bar(salvage.size, target) as show:
        copied, lost = salvage.convert(
            target, form, block_bytes=block_size, batmap=batmap, overwrite=force, progress=show
        )
    return report_salvage(source, salvage, copied, lost)


def _through_qemu(
    source: str,
    kind: str,
    target: str,
    wanted: str,
    block_size: int,
    batmap: bool,
    force: bool,
    quiet: bool,
) -> int:
    from vhdtool.cli.qemu_img import export_through_qemu, import_through_qemu
    from vhdtool.image.chain.open import open_chain

    if kind in ("vpc", "raw"):
        with open_chain(source, raw=kind == "raw") as reader:
            if not quiet:
                _note_layers(reader)
            return export_through_qemu(reader, target, wanted, force, quiet)
    if wanted != "vpc":
        raise UsageError(f"{source}: use qemu-img to convert from {kind} to {wanted}")
    return import_through_qemu(source, kind, target, block_size, batmap, force, quiet)
