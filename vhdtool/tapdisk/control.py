"""The JSON control socket: one line a request, one line a reply, events in between.

    {"id": 1, "op": "attach", "path": "/srv/vhdlab/d.vhd", "size": 1073741824}
    {"id": 1, "ok": {}}                       or  {"id": 1, "error": {"type": …, "message": …}}
    {"event": "attached", "mono": …, …}       on connections that asked for {"op": "events"}

Operations: export(size) attach(path, size, format, record) open(mode) activate(force) pause
unpause deactivate(queue) stop-queueing detach may-serve probe status events exit. Operations of
all connections run one at a time; `status` and `events` do not wait for them.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.nbd.accept import Acceptor, Peer
from vhdtool.nbd.server import NbdServer
from vhdtool.nbd.sockets import listen_unix
from vhdtool.tapdisk.disk import TapDisk
from vhdtool.tapdisk.ending import Ending
from vhdtool.tapdisk.events import Events, Outbox

log = logging.getLogger("control")
MAX_LINE = 64 << 10
"""Bytes of a request."""
MOST_CLIENTS = 64
Request = dict[str, Any]


class Control:
    """Serves the control socket of one disk, and the NBD socket while the disk is attached."""

    def __init__(
        self,
        disk: TapDisk,
        events: Events,
        control: Path,
        export: Path,
        ended: Ending | None = None,
    ) -> None:
        """`ended` is set by the operation `exit`."""
        self.disk = disk
        self.events = events
        self.export = export
        self.ended = ended or Ending()
        self._op = threading.Lock()
        self._server: NbdServer | None = None
        self._path = control
        self._operations: dict[str, Callable[[Request], None]] = {
            "export": self._export,
            "attach": self._attach,
            "open": lambda request: disk.open(request.get("mode", "plain")),
            "activate": lambda request: disk.activate(request.get("force")),
            "pause": lambda request: disk.pause(),
            "unpause": lambda request: disk.unpause(),
            "deactivate": lambda request: disk.deactivate(bool(request.get("queue", False))),
            "stop-queueing": lambda request: disk.stop_queueing(),
            "detach": lambda request: self._detach(),
            "may-serve": lambda request: disk.may_serve(),
            "probe": lambda request: disk.probe(),
            "exit": self._exit,
        }
        self._acceptor = Acceptor(
            listen_unix(control), self._serve, name="control", most=MOST_CLIENTS, reserve=True
        )

    def _serve(self, peer: Peer) -> None:
        outbox = Outbox(peer.socket)
        since = 0.0
        listens = False
        peer.idle_since = lambda: 0.0 if listens else since
        with peer.socket.makefile("rb") as lines:
            try:
                while (raw := lines.readline(MAX_LINE)).endswith(b"\n"):
                    since, peer.settled = 0.0, True
                    reply, subscribed = self._reply(raw, outbox.send)
                    listens = listens or subscribed
                    outbox.send(json.dumps(reply))
                    since = time.monotonic()
            finally:
                outbox.close()

    def _reply(self, raw: bytes, send: Callable[[str], None]) -> tuple[Request, bool]:
        """Returns the reply, and whether `send` gets the events from now on."""
        number = None
        try:
            # A path that is not UTF-8 comes as its bytes.
            request = json.loads(raw.decode("utf-8", "surrogateescape"))
            if not isinstance(request, dict) or not isinstance(request.get("op"), str):
                raise UsageError('a request is an object with an "op"')
            number = request.get("id")
            if request["op"] == "events":
                self.events.listen(send)
                return {"id": number, "ok": {}}, True
            started = time.monotonic()
            result = self.do(request)
            took = time.monotonic() - started
            return {"id": number, "ok": result, "took_ms": round(took * 1000, 3)}, False
        except (VhdtoolError, OSError) as error:
            failure = _described(error)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            failure = {"type": "UsageError", "message": repr(error)}
        except Exception as error:
            log.exception("defect in a control operation")
            failure = _described(error)
        return {"id": number, "error": failure}, False

    def do(self, request: Request) -> dict[str, Any]:
        """Runs one operation. Raises what the disk raises, UsageError for an unknown one."""
        name = request["op"]
        if name == "status":
            # Needed most when another operation does not end.
            return self.disk.status()
        with self._op:
            operation = self._operations.get(name)
            if operation is None:
                raise UsageError(f"no operation {name!r}")
            operation(request)
            return self.disk.status()

    def _export(self, request: Request) -> None:
        self.disk.promise(int(request["size"]))
        self._listen_or_detach()

    def _attach(self, request: Request) -> None:
        kind = str(request.get("format", "vhd"))
        record = _path(request, "record") if "record" in request else None
        self.disk.attach(_path(request, "path"), int(request["size"]), kind, record)
        self._listen_or_detach()

    def _exit(self, request: Request) -> None:
        try:
            self._detach()
        finally:
            self.ended.set()

    def _listen_or_detach(self) -> None:
        try:
            if self._server is None:
                self._server = NbdServer(self.disk.router, self.export)
        except VhdtoolError:
            self.disk.detach()
            raise

    def _detach(self) -> None:
        server, self._server = self._server, None
        self.disk.detach(server.stop if server is not None else lambda: None)

    def stop(self) -> None:
        """Closes the disk cleanly and removes both sockets."""
        with self._op:
            try:
                self._detach()
            finally:
                self._acceptor.stop()
                self._path.unlink(missing_ok=True)


def _described(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def _path(request: dict[str, Any], name: str) -> Path:
    """Returns a path in a request. Raises UsageError for a name that no file can have."""
    text = request[name]
    try:
        if not isinstance(text, str) or b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:
        raise UsageError(f"{name} {text!r}: is no path: no file can have that name") from None
    return Path(text)
