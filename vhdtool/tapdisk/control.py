"""The JSON control socket: a line a request, a line a reply, events in between.

    {"id": 1, "op": "attach", "path": "/srv/vhdlab/d.vhd", "size": 1073741824}
    {"id": 1, "ok": {}}                       or  {"id": 1, "error": {"type": …, "message": …}}
    {"event": "attached", "mono": …, …}       on connections that said {"op": "events"}

Operations: export(size) attach(path, size, format, record) open(mode) activate(force) pause
unpause deactivate(queue) stop-queueing detach may-serve probe status events exit. Operations of
all connections run one after the other; status waits for none.
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
from vhdtool.tapdisk.events import Events, Outbox

log = logging.getLogger("control")
MAX_LINE = 64 << 10
MOST_CLIENTS = 64


class Control:
    """Serves the control socket of one disk, and the NBD socket while the disk is attached."""

    def __init__(self, disk: TapDisk, events: Events, control: Path, export: Path) -> None:
        self.disk = disk
        self.events = events
        self.export = export
        self.ended = threading.Event()
        self._op = threading.Lock()
        self._server: NbdServer | None = None
        self._path = control
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
                    answer, subscribed = self._answer(raw, outbox.send)
                    listens = listens or subscribed
                    outbox.send(json.dumps(answer))
                    since = time.monotonic()
            finally:
                outbox.close()

    def _answer(self, raw: bytes, send: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
        """(the answer, whether `send` gets the events from now on)."""
        number = None
        try:
            # Paths are bytes: those that are not UTF-8 pass through as they are.
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
            told = _told(error)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            told = {"type": "UsageError", "message": repr(error)}
        except Exception as error:
            log.exception("defect in a control operation")
            told = _told(error)
        return {"id": number, "error": told}, False

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one operation. Raises what the disk raises, UsageError for an unknown one."""
        disk, op = self.disk, request["op"]
        if op == "status":
            # Asked most of all when another operation does not come to an end.
            return disk.status()
        with self._op:
            if op == "export":
                disk.promise(int(request["size"]))
                self._listen_or_detach()
            elif op == "attach":
                kind = str(request.get("format", "vhd"))
                record = _path(request, "record") if "record" in request else None
                disk.attach(_path(request, "path"), int(request["size"]), kind, record)
                self._listen_or_detach()
            elif op == "open":
                disk.open(request.get("mode", "plain"))
            elif op == "activate":
                disk.activate(request.get("force"))
            elif op == "deactivate":
                disk.deactivate(bool(request.get("queue", False)))
            elif op == "detach":
                self._detach()
            elif op == "exit":
                try:
                    self._detach()
                finally:
                    self.ended.set()
            elif op in ("pause", "unpause", "stop-queueing", "may-serve", "probe"):
                getattr(disk, op.replace("-", "_"))()
            else:
                raise UsageError(f"no operation {op!r}")
            return disk.status()

    def _listen(self) -> None:
        if self._server is None:
            self._server = NbdServer(self.disk.router, self.export)

    def _listen_or_detach(self) -> None:
        try:
            self._listen()
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


def _told(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def _path(request: dict[str, Any], name: str) -> Path:
    """The path in a request. Raises UsageError for what no file can be called."""
    text = request[name]
    try:
        if not isinstance(text, str) or b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:
        raise UsageError(f"{name} {text!r}: is no path: no file can have that name") from None
    return Path(text)
