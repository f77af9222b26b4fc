"""Options and formats that several commands share."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vhdtool.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "s": 512}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([bkmgts]?)(?:i?b)?$", re.IGNORECASE)

image_argument = click.argument("image", type=click.Path(), metavar="IMAGE")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


def force_option(flag: str = "--force") -> Callable[[F], F]:
    """For commands that write: the epoch of a holder whom the operator knows to be dead."""
    return click.option(
        flag,
        "force_epoch",
        type=int,
        metavar="EPOCH",
        help="Take the lease of a host that is dead.",
    )


def take_dead_lease(image: str, force_epoch: int | None) -> None:
    """Ends the lease of a dead holder, so that the command's own claim meets nobody.

    Raises ImageInUse while the holder lives, ActivationRefused when it has another epoch.
    """
    from vhdtool.leases.claim import claimed

    if force_epoch is not None:
        with claimed(image, force_epoch=force_epoch):
            pass


class Size(click.ParamType[int]):
    """A size: bytes, or with a suffix k, m, g, t (powers of 1024) or s (sectors)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.match(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no size; write for example 1048576, 512k, 20G", param, ctx)
        number, unit = match.groups()
        if len(number) > 20:
            self.fail(f"{value!r} is too large", param, ctx)
        factor = UNITS[unit.lower()]
        return int(float(number) * factor) if "." in number else int(number) * factor


def note_two_sizes(image: str) -> None:
    """Says on standard error when QEMU shows another size of an image than everybody else."""
    from vhdtool.image.metadata.read import read_metadata
    from vhdtool.storage import FileStorage
    from vhdtool.vhd.creators import readers_agree, size_for_qemu

    with FileStorage(image) as storage:
        footer = read_metadata(storage).footer
    if not readers_agree(footer):
        click.echo(
            f"vhdtool: note: {image}: the size field says {footer.current_size} bytes, which "
            f"counts here; QEMU takes the geometry and shows {size_for_qemu(footer)}",
            err=True,
        )


def print_json(value: Any) -> None:
    """Compact enough for a pipe, readable enough for a person."""
    click.echo(json.dumps(value, indent=2))


def human(size: int) -> str:
    """A size in words: `2 MiB (2097152 bytes)`."""
    if size < 1024:
        return f"{size} bytes"
    step = min((size.bit_length() - 1) // 10, 4)
    return f"{size / (1 << 10 * step):.4g} {('', 'KiB', 'MiB', 'GiB', 'TiB')[step]} ({size} bytes)"


def rows(pairs: list[tuple[str, object]]) -> str:
    """A two-column table; names are padded to the longest."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


def load_json(path: str) -> Any:
    """A JSON file. Raises UsageError when it is none."""
    with open(path, "rb") as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not JSON: {error}") from None
