"""Entry point of `vhdtool`: finds commands by name, and turns errors into exit codes."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from vhdtool.cli.arguments import refuse_dash
from vhdtool.cli.signals import clean_up_on_signals
from vhdtool.cli.standard_streams import open_missing, run_and_flush
from vhdtool.cli.suggestions import unknown_command, unknown_option
from vhdtool.errors import VhdtoolError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

GROUPS = {
    "Images, read only": {
        "info": "Show every field of an image's metadata.",
        "check": "Check images and explain each fault.",
        "scan": "Show the images of a directory as trees of parents and children.",
        "map": "Show allocated ranges, their layer and their offset.",
        "read": "Read guest data to standard output or a file.",
        "damage": "Show which guest sectors, partitions and files damage affects.",
        "meta": "Print all metadata of an image as one line of JSON.",
        "diff": "Compare the metadata of two images or metadata dumps.",
    },
    "Images, written": {
        "create": "Create an empty image: dynamic, fixed or differencing.",
        "snapshot": "Create a child image over a parent.",
        "convert": "Convert between VHD, raw, qcow2 and VHDX.",
        "resize": "Change the virtual size of a closed image.",
        "coalesce": "Write a child's data into its parent.",
        "fill": "Allocate every block.",
        "modify": "Change a closed image's parent, hidden flag, UUID or time stamp.",
        "repair": "Repair footers, sizes, batmap and leaked space.",
    },
    "Serving": {
        "serve": "Serve an image to NBD clients: QEMU, nbd-client, libnbd.",
        "vdi": "Attach and activate an image on one of several hosts, as XCP does.",
        "tap": "Control tapdisks with the commands of blktap's tap-ctl.",
    },
    "Migrations": {
        "lab": "Migrate a writing guest between two hosts, and judge its disk.",
        "judge": "Judge a run, or one case of it, from its record alone.",
        "report": "Write a run's verdict as JUnit XML and HTML, and print a table.",
        "history": "Show the runs of a directory side by side.",
        "pack": "Pack the images of a run, or of one case of it, in place.",
        "hosts": "Start, stop and inspect the two local hosts (needs root).",
        "machines": "Start, stop and inspect two emulated hosts and an NFS server (needs root).",
        "guest": "Build the guest that migrates.",
        "bundle": "Pack the code that runs on the lab's hosts into a zip file.",
    },
    "The shell": {
        "completion": "Print the completion script for a shell.",
    },
}
"""The commands with their short helps: `vhdtool --help` imports none of their modules."""
HELP = {name: short for group in GROUPS.values() for name, short in group.items()}


class LazyGroup(click.Group):
    """Imports a command's module when the command is called: `vhdtool info` loads no lab."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(HELP)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in HELP:
            return None
        module = importlib.import_module(f"vhdtool.cli.commands.{cmd_name}")
        # The function of `map` is `map_`: `map` is Python's own.
        command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        assert isinstance(command, click.Command)
        refuse_dash(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in HELP and not ctx.resilient_parsing and not args[0].startswith("-"):
            raise click.UsageError(unknown_command(args[0], HELP), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete names of commands without importing any."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=short)
            for name, short in HELP.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, HELP))
        for title, group in GROUPS.items():
            with formatter.section(title):
                # One width, so that the groups are one table.
                formatter.write_dl([(name.ljust(width), short) for name, short in group.items()])


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    from vhdtool import __version__

    click.echo(f"vhdtool {__version__}")
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

    Exit codes: 0 done; 1 failed, or wrong usage. The help of a command lists its other codes.
    """


WRONG_USAGE = {"judge": 125, "lab": 125}
"""Exit code of a usage error, where it is not 1: `git bisect run` skips a revision on 125."""


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; an error is printed as one line.

    Raises BrokenPipeError where the reader of the output has gone.
    """
    name = next((one for one in arguments if not one.startswith("-")), "")
    wrong = WRONG_USAGE.get(name, 1)
    try:
        result: Any = cli.main(arguments, prog_name="vhdtool", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return wrong
    except click.NoSuchOption as error:
        click.echo(f"vhdtool: {unknown_option(error)}", err=True)
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
        raise
    except OSError as error:
        click.echo(f"vhdtool: {error.filename or 'input or output'}: {error.strerror}", err=True)
        return wrong
    except MemoryError:
        click.echo("vhdtool: out of memory", err=True)
        return wrong
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vhdtool"):
            raise  # a damaged installation, or a fault
        needed = f"{name} needs the Python package {error.name}"
        click.echo(f"vhdtool: {needed}: pip install 'vhdtool[lab]'", err=True)
        return wrong


def main() -> None:
    """Entry point of the package."""
    open_missing()
    clean_up_on_signals()
    sys.exit(run_and_flush(lambda: run(sys.argv[1:]), "vhdtool", lambda error: 1))


if __name__ == "__main__":
    main()
