"""A tapdisk as toolstacks know it: disks (minors) in one process, blktap's control protocol.

Control socket DIR/ctl<pid>; each open disk has an NBD socket DIR/nbd<pid>.<minor>. With the guard
`open` takes the lease, because the protocol has no other operation that could.
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
from vhdtool.nbd.sockets import listen_unix
from vhdtool.tapdisk.ending import Ending
from vhdtool.tapdisk.events import Events, log_status
from vhdtool.tapdisk.tapctl import wire as wire
from vhdtool.tapdisk.tapctl.images import DaemonSettings, Refused, errno_of, lock_minor_file
from vhdtool.tapdisk.tapctl.minor import Minor
from vhdtool.tapdisk.tapctl.stats import stats_of, to_json
from vhdtool.tapdisk.tapctl.wire import Message

log = logging.getLogger("tap-ctl")
REQUEST_PATIENCE = 30.0
"""Seconds that a client has to send its request, and to receive each reply."""
MOST_CLIENTS = 64
MINOR_OPERATIONS = (
    wire.OPEN,
    wire.PAUSE,
    wire.RESUME,
    wire.CLOSE,
    wire.FORCE_SHUTDOWN,
    wire.DISK_INFO,
)


class Daemon:
    """Serves the control socket. Requests for different minors run at the same time."""

    def __init__(
        self, run_dir: Path, guard: bool, host: str, events: Events, ended: Ending | None = None
    ) -> None:
        """`ended` is set when the last disk is detached."""
        self.settings = DaemonSettings(guard, Owner.here(host), events.emit, run_dir)
        self.ended = ended or Ending()
        self.path = run_dir / f"ctl{os.getpid()}"
        self._minors: dict[int, Minor] = {}
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
        trailer = _received(client, wire.trailer_length(message))
        peer.settled = True
        # Bounded too: a reply may be longer than the socket's buffer.
        client.settimeout(REQUEST_PATIENCE)
        for reply in self.replies(message, trailer):
            client.sendall(reply)

    def replies(self, message: Message, trailer: bytes) -> Iterator[bytes]:
        """Runs a request; yields its replies, of which the last may be an error."""
        number, why = 0, ""
        try:
            yield from self._run(message, trailer)
        except VhdtoolError as error:
            log.error("%s", error)
            number, why = errno_of(error), str(error)
        except OSError as error:
            number, why = error.errno or errno.EIO, str(error)
        except Exception:
            log.exception("defect in a control operation")
            number, why = errno.EIO, "a defect"
        if message.kind == wire.STATS:
            why = ""  # tap-ctl takes any reply to it for a length, and waits for so many bytes
        if number:
            yield wire.response(wire.ERROR, message.cookie, number, why).pack()

    def _run(self, message: Message, trailer: bytes) -> Iterator[bytes]:
        kind, number = message.kind, message.cookie
        params = wire.parse_params(message)
        if kind == wire.PID:
            yield wire.pid(os.getpid(), number).pack()
        elif kind == wire.LIST:
            yield from self._list(number)
        elif kind == wire.STATS:
            yield from self._stats(number)
        elif kind == wire.ATTACH:
            self._attach(number)
            yield wire.response(wire.ATTACH_RSP, number).pack()
        elif kind == wire.DETACH:
            last = self._detach(number)
            try:
                yield wire.response(wire.DETACH_RSP, number).pack()
            finally:
                # Also when the client has gone without its reply.
                if last:
                    self.ended.set()
        else:
            if kind not in MINOR_OPERATIONS:
                raise Refused(errno.EINVAL, f"no operation {kind}")
            # tapdisk replies EINVAL to `open`, and ENODEV to everything else.
            minor = self.minor(number, errno.EINVAL if kind == wire.OPEN else errno.ENODEV)
            change_log = wire.parse_log_path(trailer) if trailer else ""
            with minor.lock:
                reply = self._operate(minor, kind, params, change_log)
            yield reply.pack()

    def _operate(self, minor: Minor, kind: int, params: wire.Params, change_log: str) -> Message:
        number = minor.number
        if kind == wire.OPEN:
            minor.open(params, change_log, self.settings)
            return wire.image(wire.OPEN_RSP, number, minor.require_disk().size)
        if kind == wire.PAUSE:
            minor.pause()
            return wire.response(wire.PAUSE_RSP, number)
        if kind == wire.RESUME:
            minor.resume(params, change_log, self.settings)
            return wire.response(wire.RESUME_RSP, number)
        if kind == wire.DISK_INFO:
            return wire.image(wire.DISK_INFO_RSP, number, minor.disk.size if minor.disk else 0)
        minor.close()
        return wire.response(wire.CLOSE_RSP, number)

    # minors

    def minor(self, number: int, missing: int = errno.ENODEV) -> Minor:
        """Returns an attached minor. Raises Refused with the errno `missing`."""
        with self._lock:
            minor = self._minors.get(number)
        if minor is None:
            raise Refused(missing, f"minor {number} is not attached to this process")
        return minor

    def _attach(self, number: int) -> None:
        with self._lock:
            if number in self._minors:
                raise Refused(errno.EEXIST, f"minor {number} is attached already")
            file = lock_minor_file(self.settings.minor_file(number))
            self._minors[number] = Minor(number, file)

    def _detach(self, number: int) -> bool:
        """Detaches a minor; returns whether it was the last."""
        minor = self.minor(number)
        with minor.lock, self._lock:
            minor.detach()
            self._minors.pop(number, None)
            return not self._minors

    # queries

    def _list(self, cookie: int) -> Iterator[bytes]:
        with self._lock:
            minors = list(self._minors.values())
        for left, minor in zip(range(len(minors), 0, -1), minors, strict=True):
            yield wire.list_entry(cookie, left, minor.number, minor.state, minor.args).pack()
        yield wire.list_entry(cookie, 0, -1, 0, "").pack()

    def _stats(self, number: int) -> Iterator[bytes]:
        stats: object
        if number == wire.ALL:
            with self._lock:
                stats = [stats_of(minor) for minor in self._minors.values()]
        else:
            stats = stats_of(self.minor(number))
        text = wire.encode(to_json(stats))
        yield wire.stats(number, len(text)).pack()
        yield text

    def dump(self) -> None:
        """Writes the state of all disks to the log."""
        for minor in list(self._minors.values()):
            status = minor.disk.status() if minor.disk is not None else {}
            log_status({"minor": minor.number, "args": minor.args, "flags": minor.state, **status})

    def stop(self) -> None:
        """Closes every disk and removes the sockets. Raises the first error that this met."""
        self._acceptor.stop()
        failure: VhdtoolError | None = None
        for minor in list(self._minors.values()):
            with minor.lock:
                try:
                    if minor.disk is not None:
                        minor.close()
                except VhdtoolError as error:
                    failure = failure or error
        self.path.unlink(missing_ok=True)
        if failure is not None:
            raise failure


def _received(client: socket.socket, size: int) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError when the client disconnects before."""
    raw = b""
    while len(raw) < size:
        part = client.recv(size - len(raw))
        if not part:
            raise EOFError
        raw += part
    return raw
