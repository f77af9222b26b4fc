"""`tap-ctl`: the command line of blktap's tool, for toolstacks that call it.

Commands, flags, output and exit codes (an errno) are the same. Two options of ours come before the
command: `--run-dir DIR` (default $VHDTOOL_RUN_DIR, or /run/blktap-control), and `--faithful` for
the processes that it starts.
"""

import errno
import getopt
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from vhdtool.cli.standard_streams import open_missing, run_and_flush
from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.client import Entry, TapCtl, TapctlError, Unexpected
from vhdtool.tapdisk.tapctl.process import default_run_dir
from vhdtool.tapdisk.tapctl.wire import Params

USAGES = {
    "list": "list [-h] [-p pid] [-m minor] [-t type] [-f file]",
    "allocate": "allocate",
    "free": "free <-m minor>",
    "create": "create <-a type:/path/to/file> [-R readonly] [-D no O_DIRECT] "
    "[-C /path/to/log of changes] [-r] [-s] [-t timeout secs]",
    "destroy": "destroy <-p pid> <-m minor> [-t timeout secs]",
    "spawn": "spawn",
    "attach": "attach <-p pid> <-m minor>",
    "detach": "detach <-p pid> <-m minor>",
    "open": "open <-p pid> <-m minor> <-a type:/path/to/file> [-R readonly] [-D no O_DIRECT] "
    "[-C /path/to/log of changes] [-r] [-s] [-t timeout secs]",
    "close": "close <-p pid> <-m minor> [-f force] [-t timeout secs]",
    "pause": "pause <-p pid> <-m minor> [-t timeout secs]",
    "unpause": "unpause <-p pid> <-m minor> [-a type:/path/to/file] [-c /path/to/log of changes]",
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
OPEN_FLAGS = {
    "R": wire.RDONLY,
    "D": wire.NO_O_DIRECT,
    "r": wire.ADD_LCACHE,
    "e": wire.REUSE_PRT,
    "2": wire.SECONDARY,
    "s": wire.STANDBY,
    "C": wire.ADD_LOG,
    "c": wire.ADD_LOG,
    "E": wire.ENCRYPTED,
}
KEY_SIZES = (32, 64)
Options = dict[str, str]


class Usage(Exception):
    """Wrong arguments."""


def parse(command: str, arguments: list[str]) -> Options:
    """Parse options to {flag: value}; other arguments are ignored. Raises Usage."""
    arguments = [one for one in arguments if one != "--debug"]
    try:
        pairs, _ = getopt.gnu_getopt(arguments, FLAGS[command])
    except getopt.GetoptError as error:
        raise Usage(str(error)) from None
    options = {flag.lstrip("-"): value for flag, value in pairs}
    if "h" in options:
        return options
    for flag in NEEDED.get(command, ""):
        if flag not in options or (flag in "pm" and _number(options, flag) == -1):
            raise Usage
    return options


def _number(options: Options, flag: str) -> int | None:
    """Parse leading digits as C does; 0 when there are none, None without the flag."""
    if flag not in options:
        return None
    match = re.match(r"\s*([+-]?\d+)", options[flag])
    return int(match[1]) if match else 0


def params_of(options: Options, minor: int) -> Params:
    """The parameters of `open`, `create` and `unpause`."""
    flags = 0
    for flag, bit in OPEN_FLAGS.items():
        flags |= bit if flag in options else 0
    parent = _number(options, "e")
    return Params(
        flags=flags,
        minor=minor,
        path=options.get("a", ""),
        parent=-1 if parent is None else parent,
        timeout=(_number(options, "t") or 0) & 0xFFFF,
        secondary=options.get("2", ""),
    )


def row(entry: Entry) -> str:
    """Format an entry for a terminal."""
    pid = "-" if entry.pid is None else str(entry.pid)
    minor = "-" if entry.minor is None else str(entry.minor)
    state = "-" if entry.state is None else state_text(entry.state)
    return f"{pid:>8} {minor:>4} {state:>4} {entry.kind or '-':>10} {entry.path or '-'}"


def pairs(entry: Entry) -> str:
    """Format an entry for a pipe."""
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
    """Format as C's %#x: zero has no prefix."""
    return f"{state:#x}" if state else "0"


def do_list(taps: TapCtl, options: Options) -> None:
    shown = row if sys.stdout.isatty() else pairs
    minor = _number(options, "m")
    for entry in taps.entries(None if (pid := _number(options, "p")) == -1 else pid):
        if minor is not None and minor >= 0 and entry.minor != minor:
            continue
        if options.get("t", entry.kind) != entry.kind or options.get("f", entry.path) != entry.path:
            continue
        print(shown(entry))


def run(taps: TapCtl, command: str, options: Options, faithful: bool, key: bytes) -> None:
    """Run a command. Raises TapctlError."""
    pid, minor = _number(options, "p") or 0, _number(options, "m") or 0
    patience = float(_number(options, "t") or 0) if "t" in options and command != "list" else None
    params = params_of(options, minor)
    trailer = wire.trailer(params.flags, options.get("C", options.get("c", "")), key)
    simple: dict[str, Callable[[], object]] = {
        "list": lambda: do_list(taps, options),
        "allocate": lambda: print(taps.minors.allocate()[1]),
        "free": lambda: taps.minors.free(minor),
        "create": lambda: print(taps.create(params, trailer, faithful)),
        "destroy": lambda: taps.destroy(pid, minor, patience),
        "spawn": lambda: _spawned(taps.spawn(faithful)),
        "attach": lambda: taps.attach(pid, minor),
        "detach": lambda: taps.detach(pid, minor),
        "open": lambda: taps.open(pid, minor, params, trailer),
        "close": lambda: taps.close(pid, minor, patience, "f" in options),
        "pause": lambda: taps.pause(pid, minor, patience),
        "unpause": lambda: taps.unpause(pid, minor, _resumed(params), trailer),
        "stats": lambda: print(taps.stats(pid, minor), end="\n\n"),
    }
    simple[command]()


def _resumed(params: Params) -> Params:
    """The parameters of `unpause`, which are fewer than those of `open`."""
    return Params(flags=params.flags, path=params.path, secondary=params.secondary)


def _spawned(pid: int) -> None:
    print(f"tapdisk spawned with pid {pid}" if sys.stdout.isatty() else pid)


def call(arguments: list[str]) -> int:
    """Run a command line; return its exit code."""
    taps_dir, faithful = default_run_dir(), False
    while arguments and arguments[0].startswith("--"):
        if arguments[0] == "--run-dir" and len(arguments) > 1:
            taps_dir, arguments = Path(arguments[1]), arguments[2:]
        elif arguments[0] == "--faithful":
            faithful, arguments = True, arguments[1:]
        else:
            break
    if not arguments or arguments[0] not in USAGES:
        # blktap's tool prints this for an unknown command too, and exits with 0.
        print("usage: tap-ctl COMMAND [OPTIONS]")
        print(f"COMMAND := {{ {' | '.join(USAGES)} }}")
        return 0
    command = arguments[0]
    try:
        options = parse(command, arguments[1:])
    except Usage as error:
        if str(error):
            print(f"tap-ctl: {error}", file=sys.stderr)
        print(f"usage: {USAGES[command]}", file=sys.stderr)
        return _failed(errno.EINVAL)
    if "h" in options:
        print(f"usage: {USAGES[command]}", file=sys.stderr if command == "attach" else sys.stdout)
        return 0
    # Standard input has the key of an encrypted image.
    key = sys.stdin.buffer.read(128) if "E" in options else b""
    if "E" in options and len(key) not in KEY_SIZES:
        print("Unsupported keysize, use either 256 bit or 512 bit key", file=sys.stderr)
        return errno.EPERM
    try:
        run(TapCtl(taps_dir), command, options, faithful, key)
    except TapctlError as error:
        if command == "detach" and isinstance(error, Unexpected):
            print(f"got unexpected result 'error' from {_number(options, 'p')}")
        return _failed(error.errno, f"tap-ctl: {command}: {error}" if error.why else "")
    except BrokenPipeError:
        raise
    except (VhdtoolError, OSError) as error:
        return _failed(_errno_of(error), f"tap-ctl: {command}: {error}")
    return 0


def _errno_of(error: Exception) -> int:
    number = error.errno if isinstance(error, OSError) else None
    return number or errno.EIO


def _failed(number: int, why: str = "") -> int:
    """Print our reason, then the last line of blktap's tool; return the errno."""
    if why:
        print(why, file=sys.stderr)
    print(os.strerror(number), file=sys.stderr)
    return number


def main() -> None:
    """Entry point of the package."""
    open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Paths are bytes, and are printed unchanged.
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.exit(run_and_flush(lambda: call(sys.argv[1:]), "tap-ctl", _errno_of))


if __name__ == "__main__":
    main()
