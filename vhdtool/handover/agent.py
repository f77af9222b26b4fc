"""The lab's resident process on a host: `python3 -m vhdtool.handover.agent`, over an SSH channel.

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
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image import qcow2
from vhdtool.image.create import create_dynamic
from vhdtool.image.meta import snapshot
from vhdtool.storage import FileStorage

GRACE = 3.0
"""Seconds between TERM and KILL at the end: a shim closes its image in that time."""


class Agent:
    """Reads requests from `lines`, writes to `out`; one instance a channel."""

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._out = out
        self._sending = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._streams: dict[int, socket.socket] = {}
        self._next_stream = 0
        self._claim = -1
        self._snapshots: list[dict[str, Any]] = []

    def say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._out(data)

    def handle(self, request: dict[str, Any]) -> None:
        """Quick operations at once, in order; what can take time in a thread of its own."""
        op = str(request.get("op"))
        if op in ("connect", "fetch", "snapshots"):
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

    # images

    def op_create(self, path: str, size: int, block: int, kind: str = "vhd") -> None:
        """A new image; one of the same name from an earlier run goes, with its lease."""
        for old in (path, path + ".lease"):
            Path(old).unlink(missing_ok=True)
        if kind == "qcow2":
            cluster = cluster_for(block)
            options = ["-f", "qcow2", "-o", f"cluster_size={cluster}", path, str(size)]
            _qemu_img("create", "-q", *options)
        else:
            create_dynamic(path, size, block_bytes=block)

    def op_check(self, path: str) -> dict[str, Any]:
        """What `qemu-img check` reports; it exits with 2 or 3 where it found something."""
        report: dict[str, Any] = json.loads(_qemu_img("check", "--output=json", path, most=3))
        return report

    def op_metadata(self, path: str, kind: str = "vhd") -> int:
        """Takes a snapshot of the image's metadata as it is on the disk now, and keeps it.

        Returns its number for `snapshots`: sending it takes longer than taking it, and a guest
        may stand still meanwhile.
        """
        with FileStorage(path, direct=True) as storage:
            self._snapshots.append((qcow2.snapshot if kind == "qcow2" else snapshot)(storage))
            return len(self._snapshots) - 1

    def op_snapshots(self, numbers: list[int]) -> list[dict[str, Any]]:
        """The snapshots of these numbers, which are forgotten with it."""
        taken = [self._snapshots[number] for number in numbers]
        for number in numbers:
            self._snapshots[number] = {}
        return taken

    def op_fetch(self, path: str) -> dict[str, Any]:
        """The data of a sparse file: its size and [(offset, base64 of zlib)] of each extent."""
        extents = []
        with open(path, "rb") as stream:
            fd = stream.fileno()
            size = os.fstat(fd).st_size
            at = 0
            while at < size:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(fd, at, os.SEEK_HOLE)
                data = os.pread(fd, end - at, at)
                extents.append([at, base64.b64encode(zlib.compress(data, 1)).decode()])
                at += len(data)
        return {"size": size, "extents": extents}

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


def cluster_for(block: int) -> int:
    """Bytes of a qcow2 cluster such that one L2 table maps a block of the load, or less.

    Then each new block changes the L1 table, which is read at the opening, as a VHD's BAT is.
    """
    cluster = 512
    while (cluster * 2) ** 2 // 8 <= block and cluster < 64 << 10:
        cluster *= 2
    return cluster


def _qemu_img(*words: str, most: int = 0) -> str:
    """Its standard output. Raises VhdtoolError when its exit code is more than `most`."""
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    if done.returncode > most:
        raise VhdtoolError(f"qemu-img {words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


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
