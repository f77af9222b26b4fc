"""A shim on a host, as the controller drives it: operations in, events out."""

import json
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any

from vhdtool.errors import (
    ActivationRefused,
    LabError,
    LeaseLost,
    ShimImageError,
    SplitBrain,
    VhdtoolError,
)
from vhdtool.lab.hosts.connection import Host
from vhdtool.storage.image_lock import ImageInUse

OP_TIMEOUT = 40.0
REFUSALS: dict[str, type[VhdtoolError]] = {
    "ActivationRefused": ActivationRefused,
    ImageInUse.__name__: ActivationRefused,
    "LeaseLost": LeaseLost,
    "SplitBrain": SplitBrain,
    **dict.fromkeys(
        ("CorruptImage", "NotAVhd", "UncleanImage", "UnsupportedImage", "VhdtoolError"),
        ShimImageError,
    ),
}
"""Errors of a shim that refuse a hand-over, or concern the image. Any other is the lab's."""
OnEvent = Callable[[Host, dict[str, Any]], None]


class Shim:
    """One shim process on a host, with one disk."""

    def __init__(
        self, host: Host, name: str, guard: bool, on_event: OnEvent, lease: str | None = None
    ) -> None:
        folder = f"{host.config.private_dir}/run"
        self.host = host
        self.folder = folder
        self.control = f"{folder}/{name}.ctl"
        self.socket = f"{folder}/{name}.nbd"
        self.log = f"{folder}/{name}.tap.log"
        self.err = f"{folder}/{name}.tap.err"
        self.state = "detached"
        self.died: int | None = None
        self.ending = False
        """Whether its end is expected; else `on_trouble` gets the reason."""
        self.on_trouble: Callable[[str], None] = lambda why: None
        self._gone = threading.Event()
        self._on_event = on_event
        self._replies: queue.Queue[dict[str, Any]] = queue.Queue()
        self._pending = b""
        self._number = 0
        self._lock = threading.Lock()
        argv = [host.config.python, "-m", "vhdtool.tapdisk", "--dir", folder, "--name", name]
        argv += ["--host", host.name] + ([] if guard else ["--faithful"])
        argv += ["--lease", lease] if lease is not None else []
        env = {"TMPDIR": folder, "PYTHONPATH": host.config.lib}
        self.pid = int(host.call("spawn", argv=argv, log=self.log, err=self.err, env=env))
        host.on_exit[self.pid] = self._exited
        self._stream: int | None = None

    def connect(self) -> None:
        """Wait for the control socket and subscribes to the events."""
        self._stream = self.host.connect(self.control, self._data)
        self.call("events")

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One operation; its reply. Raises the shim's refusal (REFUSALS), or LabError."""
        with self._lock:
            self._number += 1
            request = {"id": self._number, "op": op, **arguments}
            assert self._stream is not None
            self.host.send(self._stream, json.dumps(request).encode() + b"\n")
            try:
                reply = self._replies.get(timeout=OP_TIMEOUT)
            except queue.Empty:
                raise LabError(
                    f"{self.host.name}: the shim did not answer {op} in {OP_TIMEOUT:.0f} s"
                ) from None
        if "error" in reply:
            failure = reply["error"]
            kind = REFUSALS.get(failure["type"], LabError)
            raise kind(f"{self.host.name}: {op}: {failure['message']}")
        result: dict[str, Any] = reply["ok"]
        self.state = result.get("state", self.state)
        return result

    def _data(self, data: bytes) -> None:
        if not data:
            self._lost("the shim closed its control socket")
            return
        self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "event" in message:
                self._on_event(self.host, message)
            else:
                self._replies.put(message)

    def _exited(self, status: int) -> None:
        self.died = status
        self._gone.set()
        if not self.ending:
            self.on_trouble(f"the shim on {self.host.name} ended by itself with status {status}")
        self._lost(f"the shim exited with {status}")

    def _lost(self, why: str) -> None:
        self._replies.put({"error": {"type": "LabError", "message": why}})

    def detach(self) -> None:
        """Detach the disk, which closes it, and wait until the process is gone."""
        self.call("detach")
        self.terminate()
        self.wait_end()
        if self.died:
            raise LabError(f"{self.host.name}: the shim exited with {self.died}")

    def describe(self) -> dict[str, Any]:
        """Pid, sockets and state, for the checks of live hosts."""
        state = self.call("status")["state"]
        return {"pid": self.pid, "socket": self.socket, "control": self.control, "state": state}

    def terminate(self) -> None:
        """Ask the process to close its disk and end, without waiting for it."""
        self.ending = True
        if self.died is None:
            self.host.call("kill", pid=self.pid, signal=int(signal.SIGTERM))

    def wait_end(self, timeout: float = OP_TIMEOUT) -> None:
        if not self._gone.wait(timeout):
            raise LabError(f"{self.host.name}: the shim did not end in {timeout:.0f} s")
