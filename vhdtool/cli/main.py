"""The `vhdtool` command: finds the module of a subcommand only when it is called for."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vhdtool.cli.signals import clean_up_on_signals
from vhdtool.errors import VhdtoolError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "bundle": "vhdtool.cli.provide:bundle",
    "check": "vhdtool.cli.inspect:check",
    "coalesce": "vhdtool.cli.change:coalesce",
    "completion": "vhdtool.cli.completion:completion",
    "convert": "vhdtool.cli.transform:convert",
    "create": "vhdtool.cli.make:create",
    "damage": "vhdtool.cli.damage:damage",
    "diff": "vhdtool.cli.compare:diff",
    "fill": "vhdtool.cli.change:fill",
    "guest": "vhdtool.cli.provide:guest",
    "hosts": "vhdtool.cli.hosts:hosts",
    "info": "vhdtool.cli.inspect:info",
    "judge": "vhdtool.cli.judge:judge",
    "lab": "vhdtool.cli.lab:lab",
    "map": "vhdtool.cli.data:map_",
    "meta": "vhdtool.cli.compare:meta",
    "modify": "vhdtool.cli.change:modify",
    "read": "vhdtool.cli.data:read",
    "repair": "vhdtool.cli.mend:repair",
    "report": "vhdtool.cli.report:report",
    "resize": "vhdtool.cli.change:resize",
    "scan": "vhdtool.cli.trees:scan",
    "serve": "vhdtool.cli.serve:serve",
    "snapshot": "vhdtool.cli.make:snapshot",
    "tap": "vhdtool.cli.tap:tap",
}
"""Command name -> "module:attribute"."""

HELP = {
    "bundle": "Pack what the lab's hosts run.",
    "check": "Check an image, and say what damage means.",
    "coalesce": "Write a child's data into its parent, or a chain into its base.",
    "completion": "Print what a shell needs to complete commands.",
    "convert": "Convert between VHD, raw, qcow2 and VHDX; compact and flatten.",
    "create": "Create a dynamic, fixed or differencing image.",
    "damage": "Say which partitions and files damage touches.",
    "diff": "Compare the metadata of two images or snapshots.",
    "fill": "Allocate every block.",
    "guest": "Build the guest that migrates.",
    "hosts": "Start, end and look at the two local hosts.",
    "info": "Show every field of an image's metadata.",
    "judge": "Judge a run or a case again, from its record alone.",
    "lab": "Migrate a writing guest and judge its disk.",
    "map": "Show which ranges are allocated, and where.",
    "meta": "Print a snapshot of all metadata as JSON.",
    "modify": "Change parent, hidden flag, uuid or time stamp.",
    "read": "Read guest data to standard output or a file.",
    "repair": "Mend footers, batmap and leaked tail; guest data is never touched.",
    "report": "A run's verdict as JUnit, HTML and a table.",
    "resize": "Give an image another virtual size.",
    "scan": "Show a directory's images as trees.",
    "serve": "Serve an image to NBD clients: QEMU, nbd-client, libnbd.",
    "snapshot": "Create a child over a parent that stays as it is.",
    "tap": "Drive tapdisks as blktap's tap-ctl does.",
}
"""Short helps, so that `vhdtool --help` imports nothing; a command without one is imported."""


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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Names of commands without importing any."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=HELP.get(name))
            for name in sorted(COMMANDS)
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._help(ctx, name)) for name in sorted(COMMANDS)])

    def _help(self, ctx: click.Context, name: str) -> str:
        if name in HELP:
            return HELP[name]
        command = self.get_command(ctx, name)
        return command.get_short_help_str() if command is not None else ""


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"vhdtool {version('vhdtool')}")
    except PackageNotFoundError:
        click.echo("vhdtool (not installed)")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version.",
)
def cli() -> None:
    """Work on VHD images, and judge whether a disk survives live migration.

    Exit codes: 0 done; 1 failed or used wrongly; `check` and `diff` exit with 2 for damage and
    3 for an image that is unclean; `judge` and `lab` have their own (see their help).
    """


WRONG_USAGE = {"judge": 125, "lab": 125}
"""Exit code of a usage error where it is not 1: `git bisect run` skips a revision on 125."""


def run(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code; prints one line for a user's mistake."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    wrong = WRONG_USAGE.get(name, 1)
    try:
        result: Any = cli.main(arguments, prog_name="vhdtool", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return wrong
    except click.ClickException as error:
        click.echo(f"vhdtool: {error.format_message()}", err=True)
        return wrong
    except VhdtoolError as error:
        click.echo(f"vhdtool: {error}", err=True)
        return wrong
    except (click.Abort, KeyboardInterrupt):
        click.echo("vhdtool: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader went away (`vhdtool meta | head`); what is left has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        click.echo(f"vhdtool: {error.filename or 'input or output'}: {error.strerror}", err=True)
        return wrong
    except MemoryError:
        click.echo("vhdtool: out of memory", err=True)
        return wrong


def main() -> None:
    """Entry point of the package."""
    clean_up_on_signals()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
