"""The command line: a group whose command modules are imported only when they are used."""

import importlib
import sys

import click

from vhdtool.errors import VhdtoolError

COMMANDS = {
    "hosts": "vhdtool.cli.hosts:hosts",
}
"""Command name -> "module:attribute"."""


class LazyGroup(click.Group):
    """Finds its commands in COMMANDS, so that `vhdtool info` does not load the lab."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup)
def cli() -> None:
    """VHD images, a tapdisk shim, and a lab that judges whether a disk survives migration."""


def main() -> None:
    try:
        cli.main(standalone_mode=True)
    except VhdtoolError as error:
        click.echo(f"vhdtool: {error}", err=True)
        sys.exit(125)


if __name__ == "__main__":
    main()
