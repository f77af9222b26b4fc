"""`vhdtool resize`: another virtual size."""

import re
from dataclasses import dataclass
from typing import Any

import click

from vhdtool.cli.arguments import (
    Size,
    force_option,
    image_argument,
    quiet_option,
    take_dead_lease,
)
from vhdtool.cli.notes import STAYS, note_orphans, read_footer
from vhdtool.errors import UsageError
from vhdtool.vhd.units import size_text

_MINUS = "−"
_NEGATIVE = re.compile(r"-(?=\d)")


@dataclass(frozen=True, slots=True)
class NewSize:
    """A size in bytes (`sign` 0), or a difference to the present size (1, -1)."""

    sign: int
    size: int

    def of(self, present: int) -> int:
        return present + self.sign * self.size if self.sign else self.size


class NewSizeType(click.ParamType[NewSize]):
    """40g, +1g or -1g."""

    name = "SIZE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> NewSize:
        sign = {"+": 1, _MINUS: -1}.get(value[:1], 0)
        return NewSize(sign, Size().convert(value[1:] if sign else value, param, ctx))


class ResizeCommand(click.Command):
    """Takes -1g as the argument that it is; click takes all words with a dash for options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(
            ctx, [_NEGATIVE.sub(_MINUS, one) if _NEGATIVE.match(one) else one for one in args]
        )


@click.command(cls=ResizeCommand)
@image_argument
@click.argument("size", type=NewSizeType())
@force_option()
@quiet_option
def resize(image: str, size: NewSize, force_epoch: int | None, quiet: bool) -> None:
    """Change the virtual size of a closed image.

    SIZE is the new size, or with + or - the difference to the present one.

    Before shrinking, the part to be cut is read; it must be zero. After a crash `vhdtool repair`
    restores the old size. Where QEMU would derive another size from the geometry, the image's
    creator is changed to "QEMU with force_size".

    \b
    Example: vhdtool resize disk.vhd 40g
             vhdtool resize disk.vhd +1g
    """
    from vhdtool.image.edit.resize import resize as resize_image
    from vhdtool.vhd.creators import creator_name

    take_dead_lease(image, force_epoch)
    before = read_footer(image)
    wanted = size.of(before.current_size)
    if wanted <= 0 and size.sign:
        raise UsageError(f"{image}: has {size_text(before.current_size)}; nothing would be left")
    if not quiet:
        note_orphans(image, STAYS)
    footer = resize_image(image, wanted)
    if quiet:
        return
    click.echo(f"{image}: {size_text(footer.current_size)}")
    if footer.creator != before.creator:
        click.echo(
            f"{image}: the creator is {creator_name(footer)} from now on, was "
            f"{creator_name(before)}: QEMU would take the size from the geometry, and show "
            f"{size_text(footer.geometry.size)}"
        )
