"""`tapdisk`: the process that `tap-ctl spawn` starts, ours and blktap's own.

Prints the path of its control socket, goes to the background, and ends with its last disk. Writes
errors to tapdisk.log in the control directory.
"""

import argparse
import errno
import logging
import os
import sys
from pathlib import Path

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk.ending import Ending

RUN_DIR = Path("/run/blktap-control")


def default_run_dir() -> Path:
    """Returns the directory of control sockets and minors: $VHDTOOL_RUN_DIR, or blktap's."""
    return Path(os.environ.get("VHDTOOL_RUN_DIR", RUN_DIR))


def main() -> int:
    """Runs the process; returns its exit code, an errno."""
    ended = Ending()
    with ended.on_signals():
        return _main(ended)


def _main(ended: Ending) -> int:
    parser = argparse.ArgumentParser(prog="tapdisk", description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=default_run_dir())
    parser.add_argument("--host", default=os.uname().nodename)
    parser.add_argument("--faithful", action="store_true", help="guard off: what tapdisk2 does")
    parser.add_argument("-D", action="store_true", dest="foreground", help="stay in the foreground")
    args = parser.parse_args()
    try:
        args.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        errors = os.open(
            args.run_dir / "tapdisk.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600
        )
    except OSError as error:
        print(f"tapdisk: {args.run_dir}: {error.strerror}", file=sys.stderr)
        return error.errno or errno.EIO
    return _run(args, ended) if args.foreground or _daemonize(errors) else 0


def _daemonize(errors: int) -> bool:
    """Forks; returns True in the child, which has left its parent's session, else False."""
    if os.fork():
        return False
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(errors, 2)
    return True


def _run(args: argparse.Namespace, ended: Ending) -> int:
    # Imported late, with signals handled: it takes most of the start.
    from vhdtool.tapdisk.events import Events
    from vhdtool.tapdisk.tapctl.daemon import Daemon

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with open(os.devnull, "w") as null:
        try:
            events = Events(args.host, null)
            daemon = Daemon(args.run_dir, not args.faithful, args.host, events, ended)
        except VhdtoolError as error:
            print(f"tapdisk: {error}", file=sys.stderr)
            return errno.EIO
        os.write(1, os.fsencode(daemon.path) + b"\n")
        # The parent reads one line and waits for the end of our output.
        os.dup2(null.fileno(), 1)
        ended.wait(daemon.dump)
        try:
            daemon.stop()
        except VhdtoolError as error:
            print(f"tapdisk: {error}", file=sys.stderr)
            return errno.EIO
    return 0


if __name__ == "__main__":
    sys.exit(main())
