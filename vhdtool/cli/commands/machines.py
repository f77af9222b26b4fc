"""`vhdtool machines`: emulated machines for the lab, with kernels of their own."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import click

from vhdtool.cli.arguments import json_option
from vhdtool.cli.commands.hosts import holder_option, process_of
from vhdtool.lab.localhosts.options import default_cache

_state = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".lab-machines"),
    show_default=True,
    help="Directory of keys, disks and ssh_config.",
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_cache() / "machines",
    help="Directory of disk images and snapshots.  [default: ~/.cache/vhdlab/machines]",
)


_hypervisor = click.option(
    "--hypervisor",
    type=click.Choice(("kvm", "xen")),
    default="kvm",
    show_default=True,
    help="What the hosts boot: Linux for guests on KVM, or Xen.",
)


@click.group()
def machines() -> None:
    """Start, stop and inspect two emulated hosts and an NFS server (needs root)."""


@machines.command()
@_state
@_cache
@_hypervisor
@holder_option
def up(state: Path, cache: Path, hypervisor: str, holder: int | None) -> None:
    """Start the machines, unless they are running.

    The first time it builds their disk image and boots them, which takes minutes; then they
    start from a snapshot.
    """
    from vhdtool.lab.localhosts.state import MARK
    from vhdtool.lab.machines.control import Machines

    found = Machines(state, cache.absolute(), click.echo, hypervisor)
    made = found.up(process_of(holder), os.environ.get(MARK, ""))
    command = shlex.join(["ssh", "-F", str(state.absolute() / "ssh_config"), "alpha"])
    click.echo(f"machines {'started' if made else 'already running'}: {command}")


@machines.command()
@_state
@_cache
@holder_option
@click.option("--force", is_flag=True, help="Stop them even while a run uses them.")
def down(state: Path, cache: Path, holder: int | None, force: bool) -> None:
    """Stop the machines and remove their files; the disk image and the snapshot stay cached."""
    from vhdtool.lab.machines.control import Machines

    found = Machines(state, cache.absolute(), click.echo).down(process_of(holder), force)
    click.echo("machines stopped" if found else "no machines were running")


@machines.command()
@_state
@_cache
@json_option
@click.pass_context
def status(context: click.Context, state: Path, cache: Path, as_json: bool) -> None:
    """Print whether the machines are running; exit code 0 if so, else 1."""
    from vhdtool.lab.machines.control import Machines

    found = Machines(state, cache.absolute(), click.echo).status()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        click.echo(f"{found.state}: {found.detail}")
    context.exit(0 if found.state == "running" else 1)
