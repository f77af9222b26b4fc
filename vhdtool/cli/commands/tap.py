"""`vhdtool tap`: the command line of tap-ctl as a command of vhdtool."""

import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND ...")
def tap(arguments: tuple[str, ...]) -> None:
    """Control tapdisks with the commands of blktap's tap-ctl.

    Flags, output and exit codes are those of tap-ctl.

    \b
    Commands: list allocate free spawn attach detach open close pause unpause
              create destroy stats
    Options before the command: --run-dir DIR; --faithful for the processes that it starts.

    \b
    Example: vhdtool tap --run-dir /run/taps create -a vhd:/srv/disk.vhd
             vhdtool tap --run-dir /run/taps list
    """
    from vhdtool.cli.tap_ctl import call

    sys.exit(call(list(arguments)))
