"""The lab's resident process on a host: `python3 -m vhdtool.lab.hosts.agent`, over an SSH channel.

It exists because a new SSH command costs a hundred milliseconds and a line on an open channel
costs a fifth of one. Requests and replies are JSON lines on standard input and output:

    {"id": 1, "op": "spawn", …}  ->  {"id": 1, "ok": …} or {"id": 1, "error": "one line"}
    {"stream": 3, "data": "<base64>"}   bytes of a Unix socket that `connect` opened; "eof": true
    {"exited": PID, "status": N}        a process that `spawn` started has ended

When the channel ends, for whatever reason, the agent ends every process it started: a controller
that dies leaves nothing behind on a host. Standard library only.
"""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.lab.hosts.agent_held import Held
from vhdtool.lab.hosts.agent_images import Images

GRACE = 3.0
"""Seconds between TERM and KILL at the end: a shim closes its image in that time."""


class Agent(Images, Held):
    """Reads requests from `lines`, writes to `out`; one instance a channel."""

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._out = out
        self._sending = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._streams: dict[int, socket.socket] = {}
        self._next_stream = 0
        self._claim = -1
        super().__init__()

    def say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._out(data)

    def handle(self, request: dict[str, Any]) -> None:
        """Quick operations at once, in order; what can take time in a thread of its own."""
        op = str(request.get("op"))
        if op in ("connect", "fetch", "snapshots", "held"):
            threading.Thread(target=self._run, args=(op, request), daemon=True).start()
        else:
            self._run(op, request)

    def _run(self, op: str, request: dict[str, Any]) -> None:
        number = request.pop("id", None)
        request.pop("op", None)
        try:
            method = getattr(self, "op_" + op, None)
            if method is None:
                raise VhdtoolError(f"no operation {op!r}")
            reply = {"id": number, "ok": method(**request)}
        except (VhdtoolError, OSError, TypeError, ValueError) as error:
            kind = type(error).__name__
            reply = {"id": number, "error": str(error) or kind, "type": kind}
        if number is not None:
            with contextlib.suppress(OSError):
                self.say(reply)

    # processes

    def op_spawn(
        self, argv: list[str], log: str, env: dict[str, str] | None = None, err: str | None = None
    ) -> int:
        """Starts a process with its output appended to `log`; returns its pid.

        Called only from the main thread: the death signal follows the thread that forked.
        """
        with open(log, "ab") as out, open(err or log, "ab") as errors:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                umask=0o177,  # QEMU makes its sockets with what the mask leaves
            )
        self._children[child.pid] = child
        threading.Thread(target=self._reap, args=(child,), daemon=True).start()
        return child.pid

    def _reap(self, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()
        self._children.pop(child.pid, None)
        with contextlib.suppress(OSError):
            self.say({"exited": child.pid, "status": status})

    def op_run(self, argv: list[str], env: dict[str, str] | None = None) -> None:
        """Runs a short command to its end. Raises VhdtoolError with its last words."""
        done = subprocess.run(
            argv, env={**os.environ, **(env or {})}, capture_output=True, timeout=20, check=False
        )
        if done.returncode:
            words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise VhdtoolError(f"{argv[0]}: {' '.join(words[-1:]) or done.returncode}")

    def op_kill(self, pid: int, signal: int) -> bool:
        """Signals a process that this agent started; False when it is gone already."""
        child = self._children.get(pid)
        if child is None:
            return False
        child.send_signal(signal)
        return True

    # streams

    def op_connect(self, path: str, patience: float) -> int:
        """Connects to a Unix socket, waiting until it is there; returns the stream's number."""
        deadline = time.monotonic() + patience
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                client.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                client.close()
                if time.monotonic() > deadline:
                    raise VhdtoolError(f"{path}: nothing listens after {patience:.0f} s") from None
                time.sleep(0.003)
        self._next_stream += 1
        number = self._next_stream
        self._streams[number] = client
        threading.Thread(target=self._pump, args=(number, client), daemon=True).start()
        return number

    def _pump(self, number: int, client: socket.socket) -> None:
        try:
            while data := client.recv(1 << 16):
                self.say({"stream": number, "data": base64.b64encode(data).decode()})
        except OSError:
            pass
        self._streams.pop(number, None)
        with contextlib.suppress(OSError):
            self.say({"stream": number, "eof": True})

    def op_send(self, stream: int, data: str) -> None:
        client = self._streams.get(stream)
        if client is None:
            raise VhdtoolError("the stream has ended")
        client.sendall(base64.b64decode(data))

    # files

    def op_clock(self) -> float:
        return time.monotonic()

    def op_facts(self, qemu: str) -> dict[str, Any]:
        """What the driver needs to know of this host before it starts a guest."""
        version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
        flags = Path("/proc/cpuinfo").read_text().split()
        return {
            "qemu": version.stdout.splitlines()[0],
            "kernel": os.uname().release,
            "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK) and bool({"vmx", "svm"} & set(flags)),
        }

    def op_claim(self, path: str) -> None:
        """Makes this the only run on the host, for as long as the agent lives."""
        self._claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VhdtoolError("another run is using this host; wait for its end") from None

    def op_prepare(self, folder: str) -> None:
        """An empty private directory for sockets and logs."""
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, mode=0o700)

    def op_read(self, path: str, limit: int = 4 << 20) -> str:
        """The last `limit` bytes of a file, base64; empty when it does not exist."""
        try:
            with open(path, "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
                return base64.b64encode(stream.read(limit)).decode()
        except FileNotFoundError:
            return ""

    def op_write(self, path: str, data: str) -> None:
        Path(path).write_bytes(base64.b64decode(data))

    def op_exists(self, paths: list[str]) -> list[bool]:
        return [os.path.lexists(path) for path in paths]

    def op_remove(self, paths: list[str]) -> None:
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def op_rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def op_prune(self, folder: str, pattern: str, keep: int) -> None:
        """Removes all but the newest files of a cache."""
        files = sorted(Path(folder).glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - keep)]:
            path.unlink(missing_ok=True)

    def op_digest(self, path: str) -> str:
        import hashlib

        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def op_free(self, path: str) -> int:
        """Bytes that root can still write on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bfree * stat.f_frsize

    # the end

    def end(self) -> None:
        """Ends what was started: TERM, a moment for images to be closed, KILL."""
        children = list(self._children.values())
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for child in children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


def main() -> None:
    os.umask(0o077)
    out = os.dup(1)
    # Nothing else may write on the channel.
    os.dup2(2, 1)

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(out, data) :]

    agent = Agent(write)
    try:
        for line in sys.stdin.buffer:
            agent.handle(json.loads(line))
    finally:
        agent.end()


if __name__ == "__main__":
    main()
