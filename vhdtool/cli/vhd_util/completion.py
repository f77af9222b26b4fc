"""The commands of `vhd-util` as click's, for completion by a shell and for the man page."""

import click
from click.shell_completion import shell_complete

from vhdtool.cli.vhd_util.table import COMMANDS, PATHS, Command


def as_click() -> click.Group:
    """All commands with their options; they cannot be called."""
    return click.Group(
        "vhd-util",
        commands={name: _command(name, each) for name, each in COMMANDS.items()},
        help="Work on VHD images with the command line of blktap's tool.",
        add_help_option=False,
    )


def _command(name: str, each: Command) -> click.Command:
    options: list[click.Parameter] = [
        click.Option(
            [f"-{one.letter}", f"option_{one.letter}"],
            help=one.text or None,
            is_flag=not one.value,
            metavar=one.value or None,
            required=one.required,
            type=click.Path() if one.value in PATHS else None,
        )
        for one in each.options
    ]
    if each.files:
        options.append(click.Argument(["files"], nargs=-1, type=click.Path(), metavar=each.files))
    return click.Command(
        name, params=options, help=each.summary, short_help=each.summary, add_help_option=False
    )


def complete(question: str) -> int:
    """Answer the script of `vhdtool completion`; return the exit code."""
    return shell_complete(as_click(), {}, "vhd-util", "_VHD_UTIL_COMPLETE", question)
