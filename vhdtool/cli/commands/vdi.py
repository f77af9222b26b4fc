"""`vhdtool vdi`: XCP's VDI operations on an image that several hosts see."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vhdtool.cli.arguments import format_option, image_argument, json_option

if TYPE_CHECKING:
    from vhdtool.vdi.operations import Vdi

F = TypeVar("F", bound=Callable[..., Any])


def _local(function: F) -> F:
    """The options of every operation: which host this is, and where its sockets are."""
    for option in (
        click.option(
            "--wait",
            "patience",
            type=click.FloatRange(min=0, max=86400),
            default=30.0,
            metavar="SECONDS",
            help="Longest wait for another operation.  [default: 30]",
        ),
        click.option(
            "--run-dir",
            type=click.Path(file_okay=False),
            help="Directory of the sockets.  [default: /run/vhdtool/vdi, or of the user]",
        ),
        click.option("--host", help="Name of this host in the keys.  [default: its node name]"),
    ):
        function = option(function)
    return function


def _force(function: F) -> F:
    return click.option(
        "--force",
        type=int,
        metavar="NUMBER",
        help="The key, or the lease's epoch, of a host that is certainly dead.",
    )(function)


def _vdi(image: str, host: str | None, run_dir: str | None, patience: float) -> "Vdi":
    # Imported late: it needs most of the package.
    from vhdtool.vdi.operations import Vdi

    def note(text: str) -> None:
        click.echo(f"vhdtool: {text}", err=True)

    name = os.uname().nodename if host is None else host
    return Vdi(image, name, Path(run_dir or _default_run_dir()), patience=patience, note=note)


def _default_run_dir() -> str:
    if os.geteuid() == 0:
        return "/run/vhdtool/vdi"
    from vhdtool.errors import UsageError

    parent = os.environ.get("XDG_RUNTIME_DIR")
    if not parent:
        raise UsageError("XDG_RUNTIME_DIR is not set; name a directory with --run-dir")
    return f"{parent}/vhdtool/vdi"


def _uri(one: "Vdi") -> str:
    from vhdtool.nbd.sockets import nbd_uri

    return nbd_uri(one.sockets.export)


@click.group()
def vdi() -> None:
    """Attach and activate an image on one of several hosts, as XCP does.

    Any number of hosts may have it attached, one has it active for writing. Keys in the file
    IMAGE.keys, which all hosts see, say which host that is.

    \b
    Example: vhdtool vdi attach /srv/disk.vhd
             vhdtool vdi activate /srv/disk.vhd
    """


@vdi.command()
@image_argument
@format_option
@click.option("-r", "--read-only", is_flag=True, help="For reading; several hosts may do so.")
@_local
def attach(image: str, kind: str | None, read_only: bool, **local: Any) -> None:
    """Start the shim of an image, which reads nothing yet; print its URI."""
    one = _vdi(image, **local)
    one.attach(kind=kind, read_only=read_only)
    click.echo(_uri(one))


@vdi.command()
@image_argument
@_force
@_local
def activate(image: str, force: int | None, **local: Any) -> None:
    """Open the image and serve it; print the URI.

    Refused while another host has the image, with that host's name.

    --force takes the keys and the lease of a host that is certainly dead. A refusal says which
    number to give. What a host has locked is never taken.
    """
    one = _vdi(image, **local)
    one.activate(force)
    click.echo(_uri(one))


@vdi.command()
@image_argument
@_local
def deactivate(image: str, **local: Any) -> None:
    """Close the image, so that another host can activate it.

    If its shim has died, the image is opened again first, and closed with its footer.
    """
    one = _vdi(image, **local)
    one.deactivate()
    click.echo(f"{image}: deactivated on {one.host}")


@vdi.command()
@image_argument
@_local
def detach(image: str, **local: Any) -> None:
    """End the shim of an image that is not active here."""
    one = _vdi(image, **local)
    one.detach()
    click.echo(f"{image}: detached from {one.host}")


@vdi.command()
@image_argument
@_local
def pause(image: str, **local: Any) -> None:
    """Close an active image while its clients wait.

    No host can activate it meanwhile.
    """
    one = _vdi(image, **local)
    one.pause()
    click.echo(f"{image}: paused on {one.host}")


@vdi.command()
@image_argument
@_local
def unpause(image: str, **local: Any) -> None:
    """Open a paused image again; its clients go on."""
    one = _vdi(image, **local)
    one.unpause()
    click.echo(f"{image}: active on {one.host}")


@vdi.command()
@image_argument
@click.argument("parent", type=click.Path())
@click.option("--raw", is_flag=True, help="The parent is a raw disk.")
@_local
def relink(image: str, parent: str, raw: bool, **local: Any) -> None:
    """Set another path of the parent.

    An active image is paused meanwhile.
    """
    one = _vdi(image, **local)
    one.relink(parent, raw)
    click.echo(f"{image}: the parent is {parent}")


@vdi.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="IMAGE...")
@_force
@_local
def clear(images: tuple[str, ...], force: int | None, **local: Any) -> int:
    """Remove stale keys.

    Such as an `activating` that a dead host has left.
    A key is stale when its owner is proven gone: its process has ended on this machine, or it ran
    before this machine's last boot. With --force the keys of the host that has that key are removed
    too. Exit code 1 if keys are left of which nothing is proven.
    """
    from vhdtool.errors import UsageError
    from vhdtool.vdi.rules import refusal

    if force is not None and len(images) > 1:
        raise UsageError("--force names a key of one image")
    doubtful = 0
    for image in images:
        for key in _vdi(image, **local).clear(force):
            if key.state == "unknown":
                doubtful += 1
                click.echo(f"vhdtool: {refusal(image, key)}", err=True)
            else:
                click.echo(f"{image}: in use: {key}")
    return 1 if doubtful else 0


@vdi.command()
@image_argument
@json_option
@_local
def status(image: str, as_json: bool, **local: Any) -> None:
    """Show this host's shim, the keys of all hosts, and the lease."""
    from vhdtool.cli.output import print_json, table_text
    from vhdtool.vdi.status import describe

    found = describe(_vdi(image, **local))
    if as_json:
        print_json(found)
        return
    lease = found["lease"]
    rows = [("image", found["image"]), (f"on {found['host']}", _state_text(found))]
    rows += [("uri", found["uri"])] if found["uri"] else []
    rows += [(key["name"], _key_text(key)) for key in found["keys"]]
    if lease is not None:
        lease = f"{lease['host']} (pid {lease['pid']}), epoch {lease['epoch']}"
    click.echo(table_text([*rows, ("lease", lease or "free")]))


def _state_text(found: dict[str, Any]) -> str:
    return " ".join(str(part) for part in (found["state"], found["mode"]) if part)


def _key_text(key: dict[str, Any]) -> str:
    """One key in words; what is proven of its owner is said where it is not alive here."""
    proof = {"gone": ", stale: its owner is gone", "unknown": "", "living": ""}[key["owner"]]
    mode = f"{key['mode']} " if key["mode"] else ""
    return f"{mode}{key['host']} (pid {key['pid']}), key {key['number']}{proof}"
