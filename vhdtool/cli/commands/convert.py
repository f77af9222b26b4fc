"""`vhdtool convert`: between VHD, raw, qcow2 and VHDX."""

import os
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import Size, force_option, quiet_option, take_dead_lease
from vhdtool.cli.notes import NOT_COPIED, note_orphans, note_two_sizes
from vhdtool.cli.output import progress_bar
from vhdtool.cli.standard_streams import input_path
from vhdtool.errors import ImageExists, UsageError
from vhdtool.vhd.units import size_text

if TYPE_CHECKING:
    from vhdtool.image.chain.layers import Reader
    from vhdtool.image.create.convert import Format

FORMATS = click.Choice(["vpc", "vhd", "raw", "qcow2", "vhdx"])


@click.command()
@click.argument("source", metavar="IN", type=click.Path(allow_dash=True))
@click.argument("target", metavar="OUT", type=click.Path(allow_dash=True))
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

    `-` as IN is standard input, of any format. `-` as OUT is standard output, for a raw disk (the
    default) or a VHD with --fixed.

    A damaged VHD is refused. With --salvage, ranges that cannot be trusted become zeros and are
    listed; the exit code is 2 when there are any.

    \b
    Example: vhdtool convert disk.raw disk.vhd
             vhdtool convert disk.vhd - | ssh host "dd of=/dev/vg/disk conv=sparse bs=1M"
             vhdtool convert --salvage broken.vhd repaired.vhd
    """
    from vhdtool.image.chain.detect import NAMES, guess_output

    if place_orphans and not salvage:
        raise UsageError("--place-orphans needs --salvage")
    if target == "-":
        if salvage or force_epoch is not None:
            raise UsageError(
                "-: --salvage and --force-epoch need a file as OUT; `vhdtool read --salvage` "
                "writes to standard output"
            )
        with input_path(source, tempfile.gettempdir()) as path:
            _to_standard_output(path, source_format, target_format, fixed, quiet)
        return
    wanted = NAMES[target_format] if target_format else guess_output(target)
    if os.path.lexists(target) and not force:
        # Said before standard input is read to its end.
        raise ImageExists(f"{target}: exists already; nothing was written (see --force)")
    take_dead_lease(target, force_epoch)
    out = Target(target, wanted, block_size, batmap, force, fixed)
    with input_path(source, os.path.dirname(target) or ".") as path:
        if salvage:
            context.exit(_salvage(path, source_format, out, place_orphans))
        _to_file(path, source_format, out, quiet)


@dataclass(frozen=True, slots=True)
class Target:
    """The new file, and how it is written."""

    path: str
    wanted: str
    block_bytes: int
    batmap: bool
    overwrite: bool
    fixed: bool

    @property
    def form(self) -> "Format":
        return "raw" if self.wanted == "raw" else "fixed" if self.fixed else "dynamic"


def _to_file(source: str, source_format: str | None, target: Target, quiet: bool) -> None:
    from vhdtool.image.chain.detect import NAMES, guess_input
    from vhdtool.image.chain.open import open_chain
    from vhdtool.image.create.convert import convert as convert_image

    kind = NAMES[source_format] if source_format else guess_input(source)
    wanted = target.wanted
    if not quiet:
        _note_source(source, kind)
    if kind in ("qcow2", "vhdx") or wanted in ("qcow2", "vhdx"):
        size = _through_qemu(source, kind, target, quiet)
        name = wanted
    else:
        name = target.form
        with (
            open_chain(source, raw=kind == "raw") as reader,
            progress_bar(reader.size, target.path, quiet) as show,
        ):
            if not quiet:
                _note_layers(reader)
            size = convert_image(
                reader,
                target.path,
                target.form,
                target.block_bytes,
                target.batmap,
                target.overwrite,
                show,
            )
    if not quiet:
        click.echo(f"{target.path}: {name}, {size_text(size)}")


def _to_standard_output(
    source: str, source_format: str | None, target_format: str | None, fixed: bool, quiet: bool
) -> None:
    from vhdtool.image.chain.detect import NAMES, guess_input
    from vhdtool.image.chain.open import open_chain
    from vhdtool.image.create.convert import convert_to_stream

    kind = NAMES[source_format] if source_format else guess_input(source)
    wanted = NAMES[target_format] if target_format else "vpc" if fixed else "raw"
    if kind not in ("vpc", "raw") or not (wanted == "raw" or (wanted == "vpc" and fixed)):
        raise UsageError(
            "-: standard output takes a raw disk (-O raw) or a VHD with --fixed, made of a VHD or "
            "a raw disk; other formats are not written in order and need a file"
        )
    if sys.stdout.isatty():
        raise UsageError("-: standard output is a terminal; send it to a file or a program")
    if not quiet:
        _note_source(source, kind)
    with (
        open_chain(source, raw=kind == "raw") as reader,
        progress_bar(reader.size, "standard output", quiet) as show,
    ):
        if not quiet:
            _note_layers(reader)
        form: Format = "raw" if wanted == "raw" else "fixed"
        size = convert_to_stream(reader, sys.stdout.buffer, form, show)
        sys.stdout.buffer.flush()
    if not quiet:
        click.echo(f"standard output: {form}, {size_text(size)}", err=True)


def _note_source(source: str, kind: str) -> None:
    from vhdtool.leases.claim import writer_of

    if who := writer_of(source):
        click.echo(f"vhdtool: note: {who}; the copy may be inconsistent", err=True)
    if kind == "vpc":
        note_two_sizes(source)


def _note_layers(reader: "Reader") -> None:
    """Note the orphan blocks of each layer, which a copy does not have."""
    for layer in reader.layers:
        if layer.layout is not None:
            note_orphans(layer.name, NOT_COPIED)


def _salvage(source: str, source_format: str | None, target: Target, place_orphans: bool) -> int:
    from vhdtool.cli.salvage import report_salvage
    from vhdtool.image.chain.detect import NAMES, guess_input
    from vhdtool.image.salvage.open import open_salvage

    kind = NAMES[source_format] if source_format else guess_input(source)
    if kind != "vpc" or target.wanted not in ("vpc", "raw"):
        raise UsageError("--salvage converts a VHD to a VHD or a raw disk")
    with (
        open_salvage(source, place_orphans) as salvage,
        progress_bar(salvage.size, target.path) as show,
    ):
        copied, lost = salvage.convert(
            target.path,
            target.form,
            block_bytes=target.block_bytes,
            batmap=target.batmap,
            overwrite=target.overwrite,
            progress=show,
        )
    return report_salvage(source, salvage, copied, lost)


def _through_qemu(source: str, kind: str, target: Target, quiet: bool) -> int:
    from vhdtool.cli.qemu_img import export_through_qemu, import_through_qemu
    from vhdtool.image.chain.open import open_chain

    if kind in ("vpc", "raw"):
        with open_chain(source, raw=kind == "raw") as reader:
            if not quiet:
                _note_layers(reader)
            return export_through_qemu(reader, target.path, target.wanted, target.overwrite, quiet)
    if target.wanted != "vpc":
        raise UsageError(f"{source}: use qemu-img to convert from {kind} to {target.wanted}")
    return import_through_qemu(
        source, kind, target.path, target.block_bytes, target.batmap, target.overwrite, quiet
    )
