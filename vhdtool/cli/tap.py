"""`vhdtool tap`: tap-ctl under the name that people find in `vhdtool --help`."""

import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND ...")
def tap(words: tuple[str, ...]) -> None:
    """Drive tapdisks as blktap's tap-ctl does: same commands, flags, output and exit codes.

    \b
    Commands: list allocate free spawn attach detach open close pause unpause
              create destroy stats
    Before the command: --run-dir DIR and, for processes that it starts, --faithful.

    \b
    Example: vhdtool tap --run-dir /run/taps create -a vhd:/srv/disk.vhd
             vhdtool tap --run-dir /run/taps list
    """
    # Imported late, as each command is.
    from vhdtool.cli.tapctl import call

    sys.exit(call(list(words)))
