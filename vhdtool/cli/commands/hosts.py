"""`vhdtool hosts`: the two local hosts of this checkout."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import click

import vhdtool
from vhdtool.cli.arguments import json_option
from vhdtool.errors import UsageError
from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HostOptions, default_cache
from vhdtool.lab.localhosts.processes import Process
from vhdtool.lab.localhosts.state import MARK

_state = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(vhdtool.__file__).parent.parent / ".lab",
    help="Directory of keys and ssh_config.  [default: .lab in the checkout]",
)
holder_option = click.option(
    "--holder",
    type=int,
    envvar="VHDLAB_HOLDER",
    help="Pid of the run that uses the hosts; another running one is refused.",
)


def process_of(pid: int | None) -> Process | None:
    if pid is None:
        return None
    process = Process.of(pid)
    if process is None:
        raise UsageError(f"--holder {pid}: there is no such process")
    return process


@click.group()
def hosts() -> None:
    """Start, stop and inspect the two local hosts (needs root)."""


@hosts.command()
@_state
@holder_option
@click.option(
    "--shared-size", default="1500m", show_default=True, help="Size limit of the shared tmpfs."
)
@click.option(
    "--shared",
    type=click.Path(path_type=Path, file_okay=False),
    help="Share this directory instead of a tmpfs.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_cache(),
    help="Directory mounted at /var/cache/vhdlab.  [default: ~/.cache/vhdlab]",
)
def up(state: Path, holder: int | None, shared_size: str, shared: Path | None, cache: Path) -> None:
    """Start the hosts, unless they are running."""
    options = HostOptions(shared_size, shared.absolute() if shared else None, cache.absolute())
    lab = LocalHosts(state, click.echo)
    made = lab.up(options, process_of(holder), os.environ.get(MARK, ""))
    config = lab.state.path("ssh_config")
    command = shlex.join(["ssh", "-F", str(config), "alpha"])
    click.echo(f"hosts {'started' if made else 'already running'}: {command}")


@hosts.command()
@_state
@holder_option
@click.option("--force", is_flag=True, help="Stop them even while a run uses them.")
def down(state: Path, holder: int | None, force: bool) -> None:
    """Stop the hosts and everything that belongs to them."""
    found = LocalHosts(state, click.echo).down(process_of(holder), force)
    click.echo("hosts stopped" if found else "no hosts were running")


@hosts.command()
@_state
@json_option
@click.pass_context
def status(context: click.Context, state: Path, as_json: bool) -> None:
    """Print whether the hosts are running; exit code 0 if so, else 1."""
    found = LocalHosts(state, click.echo).status()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        click.echo(f"{found.state}: {found.detail}")
    context.exit(0 if found.state == "running" else 1)
