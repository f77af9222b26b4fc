"""One shim process: `python3 -m vhdtool.tapdisk --dir DIR --name NAME --host HOST [--faithful]`.

Control socket DIR/NAME.ctl, NBD socket DIR/NAME.nbd (while attached), events as JSON lines on
standard output. TERM or INT closes the disk with its footer, releases the lease and exits 0; USR1
writes the state to the log.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk.ending import Ending


def main() -> int:
    ended = Ending()
    with ended.on_signals():
        try:
            _run(_arguments(), ended)
        except VhdtoolError as error:
            print(f"tapdisk: {error}", file=sys.stderr)
            return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tapdisk", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="private directory for sockets")
    parser.add_argument("--name", default="disk", help="base name of the sockets")
    parser.add_argument("--host", default=os.uname().nodename, help="this host in the lease")
    parser.add_argument("--faithful", action="store_true", help="guard off: act as tapdisk2 did")
    parser.add_argument("--read-only", action="store_true", help="serve reads, without a lease")
    parser.add_argument("--lease", metavar="KIND:...", help="a lock manager or reservation")
    parser.add_argument("--no-follow", action="store_true", help="refuse symbolic links")
    return parser.parse_args()


def _run(args: argparse.Namespace, ended: Ending) -> None:
    # Imported late, with signals handled: it takes most of the start.
    from vhdtool.leases.factory import lease_opener
    from vhdtool.leases.owner import Owner
    from vhdtool.nbd import fast_path
    from vhdtool.tapdisk.access import ImageOpener, Settings
    from vhdtool.tapdisk.control import Control
    from vhdtool.tapdisk.disk import TapDisk
    from vhdtool.tapdisk.events import Events, log_status

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    guard = not args.faithful
    owner = Owner.here(args.host)
    events = Events(args.host, sys.stdout)
    disk = TapDisk(
        Settings(
            guard=guard,
            open_storage=ImageOpener(
                follow=not args.no_follow, lease_elsewhere=args.lease is not None
            ),
            open_lease=lease_opener(args.lease, owner, guard, args.read_only),
            read_only=args.read_only,
            emit=events.emit,
            fast_path_gate=fast_path.new_gate,
        )
    )
    folder: Path = args.dir
    control = Control(disk, events, folder / f"{args.name}.ctl", folder / f"{args.name}.nbd", ended)
    ended.wait(lambda: log_status(disk.status()))
    control.stop()


if __name__ == "__main__":
    sys.exit(main())
