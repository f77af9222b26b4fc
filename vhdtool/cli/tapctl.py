"""`tap-ctl`: the command line of blktap's tool, for toolstacks that were written for it.

Same commands, flags, output and exit codes (an errno). Before the command: `--run-dir DIR` (default
/run/blktap-control, or $VHDTOOL_RUN_DIR), and `--faithful` for processes that it starts.
"""

import errno
import getopt
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk import tapctl_wire as wire
from vhdtool.tapdisk.tapctl_client import RUN_DIR, Entry, TapCtl, TapctlError

USAGES = {
    "list": "list [-h] [-p pid] [-m minor] [-t type] [-f file]",
    "allocate": "allocate",
    "free": "free <-m minor>",
    "create": "create <-a type:/path/to/file> [-R readonly] [-D no O_DIRECT] [-t timeout secs]",
    "destroy": "destroy <-p pid> <-m minor> [-t timeout secs]",
    "spawn": "spawn",
    "attach": "attach <-p pid> <-m minor>",
    "detach": "detach <-p pid> <-m minor>",
    "open": "open <-p pid> <-m minor> <-a type:/path/to/file> [-R readonly] [-D no O_DIRECT]",
    "close": "close <-p pid> <-m minor> [-f force] [-t timeout secs]",
    "pause": "pause <-p pid> <-m minor> [-t timeout secs]",
    "unpause": "unpause <-p pid> <-m minor> [-a type:/path/to/file]",
    "stats": "stats <-p pid> <-m minor>",
}
FLAGS = {
    "list": "m:p:t:f:h",
    "allocate": "h",
    "free": "m:h",
    "create": "a:RDd:e:r2:st:C:h",
    "destroy": "p:m:t:h",
    "spawn": "h",
    "attach": "p:m:h",
    "detach": "p:m:h",
    "open": "a:RDm:p:e:r2:st:C:Eh",
    "close": "p:m:ft:h",
    "pause": "p:m:t:h",
    "unpause": "p:m:a:2:c:h",
    "stats": "p:m:h",
}
NEEDED = {
    "free": "m",
    "create": "a",
    "destroy": "pm",
    "attach": "pm",
    "detach": "pm",
    "open": "pma",
    "close": "pm",
    "pause": "pm",
    "unpause": "pm",
    "stats": "pm",
}
UNSUPPORTED = {"e": 0x40, "r": 0x20, "2": 0x80, "s": 0x100, "C": 0x10, "E": 0x400, "c": 0x10}
"""Flags of tapdisk's caches, mirrors and logs: they are known, and refused by name."""
Options = dict[str, str]


class Usage(Exception):
    """The command was called wrongly."""


def parse(command: str, words: list[str]) -> Options:
    """{flag: value}. Raises Usage."""
    try:
        pairs, rest = getopt.getopt(words, FLAGS[command])
    except getopt.GetoptError as error:
        raise Usage(str(error)) from None
    options = {flag.lstrip("-"): value for flag, value in pairs}
    if "h" not in options and (
        rest or any(flag not in options for flag in NEEDED.get(command, ""))
    ):
        raise Usage
    for flag in "pmt":
        if flag in options and command != "list" and not options[flag].lstrip("-").isdigit():
            raise Usage(f"-{flag} {options[flag]}: not a number")
    return options


def open_flags(options: Options) -> int:
    flags = (wire.RDONLY if "R" in options else 0) | (wire.NO_O_DIRECT if "D" in options else 0)
    for flag, bit in UNSUPPORTED.items():
        if flag in options:
            flags |= bit
    return flags


def row(entry: Entry) -> str:
    """As on a terminal."""
    pid = "-" if entry.pid is None else str(entry.pid)
    minor = "-" if entry.minor is None else str(entry.minor)
    state = "-" if entry.state is None else state_text(entry.state)
    return f"{pid:>8} {minor:>4} {state:>4} {entry.kind or '-':>10} {entry.path or '-'}"


def pairs(entry: Entry) -> str:
    """As in a pipe."""
    parts = []
    if entry.pid is not None:
        parts.append(f"pid={entry.pid}")
    if entry.minor is not None:
        parts.append(f"minor={entry.minor}")
    if entry.state is not None:
        parts.append(f"state={state_text(entry.state)}")
    if entry.args:
        parts.append(f"args={entry.args}")
    return " ".join(parts)


def state_text(state: int) -> str:
    """C's %#x: no prefix for zero."""
    return f"{state:#x}" if state else "0"


def do_list(taps: TapCtl, options: Options) -> None:
    shown = row if sys.stdout.isatty() else pairs
    for entry in taps.entries(_number(options, "p")):
        if "m" in options and entry.minor != _number(options, "m"):
            continue
        if (
            options.get("t", entry.kind) == entry.kind
            and options.get("f", entry.path) == entry.path
        ):
            print(shown(entry))


def _number(options: Options, flag: str) -> int | None:
    return int(options[flag]) if flag in options else None


def run(taps: TapCtl, command: str, options: Options, faithful: bool) -> None:
    """One command. Raises TapctlError."""
    pid, minor = _number(options, "p") or 0, _number(options, "m") or 0
    patience = float(options["t"]) if options.get("t") and command != "list" else None
    simple: dict[str, Callable[[], None]] = {
        "list": lambda: do_list(taps, options),
        "allocate": lambda: print(taps.allocate()[1]),
        "free": lambda: taps.free(minor),
        "create": lambda: print(taps.create(options["a"], open_flags(options), faithful=faithful)),
        "destroy": lambda: taps.destroy(pid, minor, patience),
        "spawn": lambda: _spawned(taps.spawn(faithful)),
        "attach": lambda: taps.attach(pid, minor),
        "detach": lambda: taps.detach(pid, minor),
        "open": lambda: _ignore(taps.open(pid, minor, options["a"], open_flags(options))),
        "close": lambda: taps.close(pid, minor, patience),
        "pause": lambda: taps.pause(pid, minor, patience),
        "unpause": lambda: taps.unpause(pid, minor, options.get("a", "")),
        "stats": lambda: print(taps.stats(pid, minor), end="\n\n"),
    }
    simple[command]()


def _spawned(pid: int) -> None:
    print(f"tapdisk spawned with pid {pid}" if sys.stdout.isatty() else pid)


def _ignore(value: object) -> None:
    del value


def call(words: list[str]) -> int:
    """The command line; its exit code."""
    run_dir, faithful = Path(os.environ.get("VHDTOOL_RUN_DIR", RUN_DIR)), False
    while words and words[0].startswith("--"):
        if words[0] == "--run-dir" and len(words) > 1:
            run_dir, words = Path(words[1]), words[2:]
        elif words[0] == "--faithful":
            faithful, words = True, words[1:]
        else:
            break
    if not words or words[0] not in USAGES:
        print("usage: tap-ctl COMMAND [OPTIONS]")
        print(f"COMMAND := {{ {' | '.join(USAGES)} }}")
        return 0 if words and words[0] in ("-h", "--help", "help") else errno.EINVAL
    command = words[0]
    try:
        options = parse(command, words[1:])
    except Usage as error:
        if str(error):
            print(f"tap-ctl: {error}", file=sys.stderr)
        print(f"usage: {USAGES[command]}", file=sys.stderr)
        return errno.EINVAL
    if "h" in options:
        print(f"usage: {USAGES[command]}")
        return 0
    try:
        run(TapCtl(run_dir), command, options, faithful)
    except TapctlError as error:
        print(f"tap-ctl: {command}: {error}", file=sys.stderr)
        return error.errno
    except (VhdtoolError, OSError) as error:
        print(f"tap-ctl: {command}: {error}", file=sys.stderr)
        return getattr(error, "errno", None) or errno.EIO
    return 0


def main() -> None:
    """Entry point of the package."""
    sys.exit(call(sys.argv[1:]))


if __name__ == "__main__":
    main()
