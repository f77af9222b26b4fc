"""Arguments and options that several commands have."""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "s": 512}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([bkmgts]?)(?:i?b)?$", re.IGNORECASE)
image_argument = click.argument("image", type=click.Path(), metavar="IMAGE")
format_option = click.option(
    "-f",
    "--format",
    "kind",
    type=click.Choice(["vhd", "qcow2", "raw"]),
    help="Format of the image.  [default: vhd or qcow2, by its content; never raw]",
)
"""For commands that serve an image: a raw one is never guessed, because its guest may write
what looks like another format."""
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")


def json_option(function: F) -> F:
    """`--json`, and `--output json` as qemu-img has it; the function gets `as_json`."""

    @click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
    @click.option(
        "--output",
        "output_format",
        type=click.Choice(["human", "json"]),
        help="As with qemu-img: json is the same as --json.",
    )
    @functools.wraps(function)
    def either(*args: Any, as_json: bool, output_format: str | None, **others: Any) -> Any:
        return function(*args, as_json=as_json or output_format == "json", **others)

    return cast(F, either)


def force_option(flag: str = "--force") -> Callable[[F], F]:
    """The option of commands that write: the epoch of an owner that is known to be dead."""
    return click.option(
        flag,
        "force_epoch",
        type=int,
        metavar="EPOCH",
        help="Take over the lease of a dead host.",
    )


def refuse_dash(command: click.Command) -> None:
    """Refuse `-` as a path of a command and its subcommands.

    By convention `-` is a standard stream, and a file of this name is hardly meant. A path that may
    be one has the type `click.Path(allow_dash=True)`.
    """
    for parameter in command.params:
        if isinstance(parameter.type, click.Path) and not parameter.type.allow_dash:
            parameter.callback = _refuse_dash
    if isinstance(command, click.Group):
        for each in command.commands.values():
            refuse_dash(each)


def _refuse_dash(context: click.Context, parameter: click.Parameter, value: T) -> T:
    if any(str(one) == "-" for one in (value if isinstance(value, tuple) else (value,))):
        raise click.BadParameter(
            "standard input and output are not possible here; ./- is a file of that name",
            context,
            parameter,
        )
    return value


def take_dead_lease(image: str, force_epoch: int | None) -> None:
    """End the lease of a dead owner, so that the command's own claim succeeds.

    Raises ImageInUse while the owner lives, ActivationRefused when the lease has another epoch.
    """
    from vhdtool.leases.claim import claimed

    if force_epoch is not None:
        with claimed(image, force_epoch=force_epoch):
            pass


class Size(click.ParamType[int]):
    """A size in bytes, or with a suffix k, m, g, t (powers of 1024) or s (sectors)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.match(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; examples are 1048576, 512k, 20G", param, ctx)
        number, unit = match.groups()
        if len(number) > 20:
            self.fail(f"{value!r} is too large", param, ctx)
        factor = UNITS[unit.lower()]
        return int(float(number) * factor) if "." in number else int(number) * factor
