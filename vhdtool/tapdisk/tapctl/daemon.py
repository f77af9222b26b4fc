"""A tapdisk as toolstacks know it: disks (minors) in one process, blktap's control protocol.

Control socket DIR/ctl<pid>; each open disk has an NBD socket DIR/nbd<pid>.<minor>. With the guard,
`open` takes the lease: what has no lease would serve nothing, and this protocol has no other word
for it.
"""

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from vhdtool.errors import VhdtoolError
from vhdtool.leases.owner import Owner
from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.metrics import dump
from vhdtool.nbd.sockets import listen_unix
from vhdtool.tapdisk.events import Events
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.images import Opening, Refused, errno_of, locked_marker
from vhdtool.tapdisk.tapctl.minor import Vbd
from vhdtool.tapdisk.tapctl.stats import spelled, stats_of
from vhdtool.tapdisk.tapctl.wire import Message

log = logging.getLogger("tap-ctl")
REQUEST_PATIENCE = 30.0
"""Seconds that a client has for its request, and for taking each answer."""
MOST_CLIENTS = 64
OF_A_DISK = (wire.OPEN, wire.PAUSE, wire.RESUME, wire.CLOSE, wire.FORCE_SHUTDOWN, wire.DISK_INFO)


class TapdiskServer:
    """The process. Requests come one a connection and run at the same time for other minors."""

    def __init__(self, run_dir: Path, guard: bool, host: str, events: Events) -> None:
        self.how = Opening(guard, Owner.here(host), events.emit, run_dir)
        self.ended = threading.Event()
        self.path = run_dir / f"ctl{os.getpid()}"
        self._vbds: dict[int, Vbd] = {}
        self._lock = threading.Lock()
        self._acceptor = Acceptor(
            listen_unix(self.path),
            self._serve,
            name="control",
            most=MOST_CLIENTS,
            patience=REQUEST_PATIENCE,
            reserve=True,
        )

    def _serve(self, peer: Peer) -> None:
        client = peer.socket
        message = Message.unpack(_received(client, wire.SIZE))
        behind = _received(client, wire.behind_of(message))
        peer.settled = True
        # Not without end: an answer may be longer than what a socket holds.
        client.settimeout(REQUEST_PATIENCE)
        for answer in self._answers(message, behind):
            client.sendall(answer)

    def _answers(self, message: Message, behind: bytes) -> Iterator[bytes]:
        number, why = 0, ""
        try:
            yield from self._do(message, behind)
        except VhdtoolError as error:
            log.error("%s", error)
            number, why = errno_of(error), str(error)
        except OSError as error:
            number, why = error.errno or errno.EIO, str(error)
        except Exception:
            log.exception("defect in a control operation")
            number, why = errno.EIO, "a defect"
        if message.kind == wire.STATS:
            why = ""  # tap-ctl reads any answer to it as a length, and waits for so many bytes
        if number:
            yield wire.response(wire.ERROR, message.cookie, number, why).pack()

    def _do(self, message: Message, behind: bytes) -> Iterator[bytes]:
        kind, minor = message.kind, message.cookie
        params = wire.params_of(message)
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
            try:
                yield wire.response(wire.DETACH_RSP, minor).pack()
            finally:
                # Also when the client has gone and takes no answer.
                if last:
                    self.ended.set()
        else:
            if kind not in OF_A_DISK:
                raise Refused(errno.EINVAL, f"no operation {kind}")
            # tapdisk says so of an `open`, and ENODEV of everything else.
            vbd = self._vbd(minor, errno.EINVAL if kind == wire.OPEN else errno.ENODEV)
            path = wire.log_path_of(behind) if behind else ""
            with vbd.lock:
                answer = self._on(vbd, kind, params, path)
            yield answer.pack()

    def _on(self, vbd: Vbd, kind: int, params: wire.Params, log_path: str) -> Message:
        minor = vbd.minor
        if kind == wire.OPEN:
            vbd.open(params, log_path, self.how)
            return wire.image(wire.OPEN_RSP, minor, vbd.open_disk().size)
        if kind == wire.PAUSE:
            vbd.pause()
            return wire.response(wire.PAUSE_RSP, minor)
        if kind == wire.RESUME:
            vbd.resume(params, log_path, self.how)
            return wire.response(wire.RESUME_RSP, minor)
        if kind == wire.DISK_INFO:
            return wire.image(wire.DISK_INFO_RSP, minor, vbd.disk.size if vbd.disk else 0)
        vbd.close()
        return wire.response(wire.CLOSE_RSP, minor)

    # minors

    def _vbd(self, minor: int, missing: int = errno.ENODEV) -> Vbd:
        with self._lock:
            vbd = self._vbds.get(minor)
        if vbd is None:
            raise Refused(missing, f"minor {minor} is not attached to this process")
        return vbd

    def _attach(self, minor: int) -> None:
        with self._lock:
            if minor in self._vbds:
                raise Refused(errno.EEXIST, f"minor {minor} is attached already")
            self._vbds[minor] = Vbd(minor, locked_marker(self.how.marker(minor)))

    def _detach(self, minor: int) -> bool:
        vbd = self._vbd(minor)
        with vbd.lock, self._lock:
            vbd.detach()
            self._vbds.pop(minor, None)
            return not self._vbds

    # looking

    def _list(self, cookie: int) -> Iterator[bytes]:
        with self._lock:
            vbds = list(self._vbds.values())
        for left, vbd in zip(range(len(vbds), 0, -1), vbds, strict=True):
            yield wire.listed(cookie, left, vbd.minor, vbd.bits, vbd.args).pack()
        yield wire.listed(cookie, 0, -1, 0, "").pack()

    def _stats(self, minor: int) -> Iterator[bytes]:
        told: object
        if minor == wire.ALL:
            with self._lock:
                told = [stats_of(vbd) for vbd in self._vbds.values()]
        else:
            told = stats_of(self._vbd(minor))
        text = wire.encoded(spelled(told))
        yield wire.stats(minor, len(text)).pack()
        yield text

    def dump(self) -> None:
        """Writes the state of all disks to the log."""
        for vbd in list(self._vbds.values()):
            status = vbd.disk.status() if vbd.disk is not None else {}
            dump({"minor": vbd.minor, "args": vbd.args, "flags": vbd.bits, **status})

    def stop(self) -> None:
        """Closes every disk and removes the sockets. Raises the first thing that went wrong."""
        self._acceptor.stop()
        failure: VhdtoolError | None = None
        for vbd in list(self._vbds.values()):
            with vbd.lock:
                try:
                    if vbd.disk is not None:
                        vbd.close()
                except VhdtoolError as error:
                    failure = failure or error
        self.path.unlink(missing_ok=True)
        if failure is not None:
            raise failure


def _received(client: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises EOFError when the client goes before."""
    raw = b""
    while len(raw) < size:
        part = client.recv(size - len(raw))
        if not part:
            raise EOFError
        raw += part
    return raw
