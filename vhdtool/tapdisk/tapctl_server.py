"""A tapdisk as toolstacks know it: disks (minors) in one process, blktap's control protocol.

    python -m vhdtool.tapdisk.tapctl_server --run-dir DIR [--faithful]

Control socket DIR/ctl<pid>; each open disk has an NBD socket DIR/nbd<pid>.<minor>. Prints the path
of its control socket, and ends with its last disk. With the guard, `open` takes the lease: what
has no lease would serve nothing, and this protocol has no other word for it.
"""

import argparse
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from vhdtool.errors import VhdtoolError
from vhdtool.tapdisk import tapctl_wire as wire
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.events import Events
from vhdtool.tapdisk.lease import Owner
from vhdtool.tapdisk.listen import listen_unix
from vhdtool.tapdisk.metrics import dump
from vhdtool.tapdisk.nbd import NbdServer
from vhdtool.tapdisk.tapctl_disks import Refused, Vbd, errno_of, image_of, started, stats_of
from vhdtool.tapdisk.tapctl_wire import Message

log = logging.getLogger("tap-ctl")
REQUEST_PATIENCE = 30.0


class TapdiskServer:
    """The process. Requests come one a connection and run at the same time for other minors."""

    def __init__(self, run_dir: Path, guard: bool, host: str, events: Events) -> None:
        self.run_dir = run_dir
        self.guard = guard
        self.events = events
        self.owner = Owner.here(host)
        self.ended = threading.Event()
        self.path = run_dir / f"ctl{os.getpid()}"
        self._vbds: dict[int, Vbd] = {}
        self._lock = threading.Lock()
        self._listener = listen_unix(self.path)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(REQUEST_PATIENCE)
            try:
                raw = b""
                while len(raw) < wire.SIZE:
                    part = client.recv(wire.SIZE - len(raw))
                    if not part:
                        return
                    raw += part
                for answer in self._answers(Message.unpack(raw)):
                    client.sendall(answer)
            except OSError:
                return

    def _answers(self, message: Message) -> Iterator[bytes]:
        try:
            yield from self._do(message)
        except VhdtoolError as error:
            log.error("%s", error)
            yield wire.response(wire.ERROR, message.cookie, errno_of(error), str(error)).pack()
        except OSError as error:
            yield wire.response(
                wire.ERROR, message.cookie, error.errno or errno.EIO, str(error)
            ).pack()
        except Exception:
            log.exception("defect in a control operation")
            yield wire.response(wire.ERROR, message.cookie, errno.EIO, "a defect").pack()

    def _do(self, message: Message) -> Iterator[bytes]:
        kind, minor = message.kind, message.cookie
        if kind == wire.PID:
            yield wire.pid_message(os.getpid(), minor).pack()
        elif kind == wire.LIST:
            yield from self._list(minor)
        elif kind == wire.STATS:
            yield from self._stats(minor)
        elif kind == wire.ATTACH:
            self._attach(minor)
            yield wire.response(wire.ATTACH_RSP, minor).pack()
        elif kind == wire.DETACH:
            last = self._detach(minor)
            yield wire.response(wire.DETACH_RSP, minor).pack()
            if last:
                self.ended.set()
        elif kind == wire.EXIT:
            self.ended.set()
        else:
            vbd = self._vbd(minor)
            with vbd.lock:
                yield self._on(vbd, message).pack()

    def _on(self, vbd: Vbd, message: Message) -> Message:
        kind, minor = message.kind, vbd.minor
        if kind == wire.OPEN:
            self._open(vbd, wire.params_of(message))
            return wire.image(wire.OPEN_RSP, minor, vbd.open_disk().size)
        if kind in (wire.CLOSE, wire.FORCE_SHUTDOWN):
            self._close(vbd)
            return wire.response(wire.CLOSE_RSP, minor)
        if kind == wire.PAUSE:
            if vbd.open_disk().state != "paused":
                vbd.open_disk().pause()
            vbd.state = wire.PAUSED
            return wire.response(wire.PAUSE_RSP, minor)
        if kind == wire.RESUME:
            self._resume(vbd, wire.params_of(message))
            return wire.response(wire.RESUME_RSP, minor)
        if kind == wire.DISK_INFO:
            return wire.image(wire.DISK_INFO_RSP, minor, vbd.open_disk().size)
        raise Refused(errno.EINVAL, f"no operation {kind}")

    # minors

    def _vbd(self, minor: int) -> Vbd:
        with self._lock:
            vbd = self._vbds.get(minor)
        if vbd is None:
            raise Refused(errno.ENODEV, f"minor {minor} is not attached to this process")
        return vbd

    def _attach(self, minor: int) -> None:
        with self._lock:
            if minor in self._vbds:
                raise Refused(errno.EEXIST, f"minor {minor} is attached already")
            self._vbds[minor] = Vbd(minor)

    def _detach(self, minor: int) -> bool:
        vbd = self._vbd(minor)
        with vbd.lock, self._lock:
            if vbd.disk is not None:
                raise Refused(errno.EINVAL, f"minor {minor} still has an image open")
            self._vbds.pop(minor, None)
            return not self._vbds

    def _open(self, vbd: Vbd, params: wire.Params) -> None:
        if vbd.disk is not None:
            raise Refused(errno.EALREADY, f"minor {vbd.minor} has an image open")
        if params.flags & wire.REFUSED_FLAGS:
            raise Refused(errno.EINVAL, f"flags {params.flags:#x}: not supported")
        disk = started(params.path, params.flags, self.guard, self.owner, self.events.emit)
        try:
            vbd.server = NbdServer(disk, self.run_dir / f"nbd{os.getpid()}.{vbd.minor}")
        except BaseException:
            disk.detach()
            raise
        vbd.disk, vbd.args, vbd.state = disk, params.path, 0

    def _resume(self, vbd: Vbd, params: wire.Params) -> None:
        disk = vbd.open_disk()
        if params.path and params.path != vbd.args:
            self._exchange(vbd, disk, params)
        elif disk.state == "paused":
            disk.unpause()
        vbd.state = 0

    def _exchange(self, vbd: Vbd, disk: TapDisk, params: wire.Params) -> None:
        """A paused disk goes on with another file, as after a snapshot."""
        if disk.state != "paused":
            raise Refused(errno.EINVAL, f"minor {vbd.minor} is not paused")
        disk.exchange(*image_of(params.path))
        vbd.args = params.path

    def _close(self, vbd: Vbd) -> None:
        disk, server = vbd.open_disk(), vbd.server
        vbd.disk, vbd.server = None, None
        vbd.state = wire.CLOSED
        disk.detach(server.stop if server is not None else lambda: None)
        vbd.args = ""

    # looking

    def _list(self, minor: int) -> Iterator[bytes]:
        with self._lock:
            vbds = [v for v in self._vbds.values() if minor in (wire.ALL, v.minor)]
        for left, vbd in zip(range(len(vbds), 0, -1), vbds, strict=True):
            yield wire.listed(left, vbd.minor, vbd.state, vbd.args).pack()
        yield wire.listed(0, -1, 0, "").pack()

    def _stats(self, minor: int) -> Iterator[bytes]:
        with self._lock:
            vbds = [v for v in self._vbds.values() if minor in (wire.ALL, v.minor)]
        if minor != wire.ALL and not vbds:
            raise Refused(errno.ENODEV, f"minor {minor} is not attached to this process")
        told = [stats_of(vbd) for vbd in vbds]
        text = json.dumps(told if minor == wire.ALL else told[0]).encode()
        yield wire.stats(minor, len(text)).pack()
        yield text

    def dump(self) -> None:
        """Writes the state of all disks to the log."""
        for vbd in list(self._vbds.values()):
            status = vbd.disk.status() if vbd.disk is not None else {}
            dump({"minor": vbd.minor, "args": vbd.args, "flags": vbd.state, **status})

    def stop(self) -> None:
        """Closes every disk and removes the sockets. Raises the first thing that went wrong."""
        self._listener.close()
        failure: VhdtoolError | None = None
        for vbd in list(self._vbds.values()):
            with vbd.lock:
                try:
                    if vbd.disk is not None:
                        self._close(vbd)
                except VhdtoolError as error:
                    failure = failure or error
        self.path.unlink(missing_ok=True)
        if failure is not None:
            raise failure


def main() -> int:
    parser = argparse.ArgumentParser(prog="tapdisk", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--host", default=os.uname().nodename)
    parser.add_argument("--faithful", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with open(os.devnull, "w") as nowhere:
        try:
            events = Events(args.host, nowhere)
            server = TapdiskServer(args.run_dir, not args.faithful, args.host, events)
        except VhdtoolError as error:
            print(f"tapdisk: {error}", file=sys.stderr)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.ended.set())
        signal.signal(signal.SIGUSR1, lambda *_: server.dump())
        print(server.path, flush=True)
        # Who started us reads one line and goes.
        os.dup2(nowhere.fileno(), 1)
        server.ended.wait()
        try:
            server.stop()
        except VhdtoolError as error:
            print(f"tapdisk: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
