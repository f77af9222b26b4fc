"""Entry point of `vhd-util`: finds commands in the table, and turns errors into exit codes."""

import errno
import importlib
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches

from vhdtool.cli.signals import clean_up_on_signals
from vhdtool.cli.standard_streams import open_missing, run_and_flush
from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    SilentExit,
    WrongArguments,
    errno_of,
    explain,
    parse,
)
from vhdtool.cli.vhd_util.table import COMMANDS, Command
from vhdtool.errors import UsageError, VhdtoolError

_HERE = "vhdtool.cli.vhd_util"


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit code."""
    arguments = [one for one in arguments if one != "--debug"]
    if not arguments or arguments[0] not in COMMANDS:
        if arguments:
            print(f"invalid COMMAND {arguments[0]}", file=sys.stderr)
            if near := get_close_matches(arguments[0], COMMANDS, n=1):
                print(f"vhd-util: did you mean {near[0]}?", file=sys.stderr)
        print("usage: vhd-util COMMAND [OPTIONS]")
        print(f"COMMAND := {{ {' | '.join(COMMANDS)} }}")
        return 0
    name, rest = arguments[0], arguments[1:]
    command = COMMANDS[name]
    try:
        if name == "scan":
            return _call(command.target)(rest)
        options = parse(name, rest, command.letters)
        _refuse_dash(options, command)
        return _call(command.target)(options)
    except WrongArguments:
        print(f"options: {command.usage} [-h help]")
        return command.exit_code_of_help if "-h" in rest else errno.EINVAL
    except CommandFailed as error:
        print(error)
        return error.exit_code
    except SilentExit as error:
        return error.exit_code
    except BrokenPipeError:
        raise
    except (VhdtoolError, OSError, MemoryError) as error:
        explain(error)
        return errno_of(error)


def _refuse_dash(options: Options, command: Command) -> None:
    """Refuse `-` as a path: by convention it is a standard stream, and not a file of that name."""
    if any(options.get(letter) == "-" for letter in command.path_letters()):
        raise UsageError("-: not a path here; ./- is a file of that name")


def _call(target: str) -> Callable[[Options | list[str]], int]:
    module, attribute = target.split(":")
    function: Callable[[Options | list[str]], int]
    function = getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
    return function


def main() -> None:
    """Entry point of the package."""
    if question := os.environ.get("_VHD_UTIL_COMPLETE"):
        from vhdtool.cli.vhd_util.completion import complete

        sys.exit(complete(question))
    open_missing()
    clean_up_on_signals()
    # Paths are bytes, and are printed unchanged.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = run_and_flush(lambda: run(sys.argv[1:]), "vhd-util", errno_of)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
