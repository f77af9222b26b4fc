"""Entry point of `vhd-util`: the table of commands; errors become exit codes."""

import importlib
import os
import sys
from collections.abc import Callable

from vhdtool.cli.signals import clean_up_on_signals
from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    SilentExit,
    WrongArguments,
    errno_of,
    explain,
    parse,
)
from vhdtool.errors import VhdtoolError

_HERE = "vhdtool.cli.vhd_util"
COMMANDS = {
    "create": ("create:create", "n:s:S:r"),
    "snapshot": ("create:snapshot", "n:p:S:l:me"),
    "query": ("query:query", "n:vspfdSmau"),
    "read": ("read:read", "n:pt:b:Bm:i:e:aj:d:c:r:R:xC"),
    "set": ("modify:set_field", "n:f:v:"),
    "repair": ("repair:repair", "n:b"),
    "resize": ("resize:resize", "n:s:j:f"),
    "fill": ("coalesce:fill", "n:f:t:bB"),
    "coalesce": ("coalesce:coalesce", "n:sp"),
    "modify": ("modify:modify", "n:s:p:mz"),
    "scan": ("scan:scan", "m:fcl:pavM"),
    "check": ("check:check", "n:iItpbBs"),
    "revert": ("repair:revert", "n:j:"),
    "key": ("key_hash:key", "n:k:N:H:scCp"),
}
"""Name -> (module:function, options as getopt takes them)."""
USAGE = {
    "create": "-n NAME -s MB [-r (a fixed image)] [-S MB (size that the tables are made for)]",
    "snapshot": "-n NAME -p PARENT [-l LIMIT of the chain] [-m (raw parent)] [-S MB] "
    "[-e (link to PARENT even if it is empty)]",
    "query": "-n NAME [-v virtual MB] [-s bytes used] [-p parent] [-u (parent as written)] "
    "[-f hidden] [-m marker] [-d depth] [-a blocks] [-S MB of a fast resize]",
    "read": "-n NAME [-p headers] [-t SECTOR's offset] [-b BLOCK's BAT entry] [-B BAT as bits] "
    "[-m BLOCK's bitmap] [-i SECTOR's bit] [-e SECTOR: extents] [-a batmap] [-j BLOCK's bit] "
    "[-d BLOCK's data] [-r SECTOR: data] [-R BYTE: data] [-c COUNT] [-x (hexadecimal)]",
    "set": "-n NAME -f hidden|marker -v VALUE",
    "repair": "-n NAME [-b (from the footer's copy)]",
    "resize": "-n NAME -s MB (-j JOURNAL | -f (fast, within the tables))",
    "fill": "-n NAME",
    "coalesce": "-n NAME [-s (skip zeros)] [-p (progress)]",
    "modify": "-n NAME [-p PARENT [-m (raw)]] [-s BYTES of the file] [-z (discard all data)]",
    "scan": "[-m PATTERN] [-f fast] [-c continue after errors] [-l VOLUME_GROUP] [-p as trees] "
    "[-a parents too] [-v whole paths] [-M markers] FILES",
    "check": "-n NAME [-i (a missing footer is no fault)] [-I (any parent)] [-t (any time)] "
    "[-B (no bitmaps)] [-p parents] [-b bitmaps] [-s statistics]",
    "revert": "-n NAME -j JOURNAL",
    "key": "-p -n NAME | -s -n NAME (-k KEYFILE | -H HASH) [-N NONCE] | -c -n NAME -k KEYFILE | "
    "-C -k KEYFILE [-N NONCE]",
}


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit code."""
    arguments = [one for one in arguments if one != "--debug"]
    if not arguments or arguments[0] not in COMMANDS:
        if arguments:
            print(f"invalid COMMAND {arguments[0]}", file=sys.stderr)
        print("usage: vhd-util COMMAND [OPTIONS]")
        print(f"COMMAND := {{ {' | '.join(COMMANDS)} }}")
        return 0
    name, rest = arguments[0], arguments[1:]
    target, letters = COMMANDS[name]
    try:
        if name == "scan":
            return _call(target)(rest)
        return _call(target)(parse(name, rest, letters))
    except WrongArguments:
        print(f"options: {USAGE[name]} [-h help]")
        help_given = "-h" in rest and name in ("query", "snapshot", "check", "scan", "key")
        return 0 if help_given else errno_of(ValueError())
    except CommandFailed as error:
        print(error)
        return error.exit_code
    except SilentExit as error:
        return error.exit_code
    except (VhdtoolError, OSError, MemoryError) as error:
        explain(error)
        return errno_of(error)


def _call(target: str) -> Callable[[Options | list[str]], int]:
    module, attribute = target.split(":")
    function: Callable[[Options | list[str]], int]
    function = getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
    return function


def main() -> None:
    """Entry point of the package."""
    clean_up_on_signals()
    # Paths are bytes, and are printed unchanged.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 32
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
