"""The lab's resident process on a host: `python3 -m vhdtool.lab.hosts.agent`, over an SSH channel.

A new SSH command takes 100 ms, a line on an open channel 0.2 ms. Requests and replies are JSON
lines on standard input and output:

    {"id": 1, "op": "spawn", …}  ->  {"id": 1, "ok": …} or {"id": 1, "error": "one line"}
    {"stream": 3, "data": "<base64>"}   bytes of a Unix socket that `connect` opened; "eof": true
    {"exited": PID, "status": N}        a process that `spawn` started has ended

When the channel ends, for whatever reason, the agent ends every process it started: a controller
that dies leaves nothing behind on a host. Standard library only.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.lab.commands import run_command
from vhdtool.lab.hosts.agent_files import FileOperations
from vhdtool.lab.hosts.agent_holdings import describe_holdings
from vhdtool.lab.hosts.agent_images import ImageOperations
from vhdtool.lab.hosts.agent_vdi import operate_vdi

GRACE = 3.0
"""Seconds between TERM and KILL at the end: a shim closes its image in that time."""
END_TIMEOUT = 30.0
SLOW = ("connect", "fetch", "snapshots", "held", "output", "vdi")


class Agent:
    """The agent of one channel: `handle` takes its requests, `out` gets its replies."""

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._out = out
        self._sending = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._streams: dict[int, socket.socket | Terminal] = {}
        self._next_stream = 0
        self._at_end: list[list[str]] = []
        self._operations: dict[str, Callable[..., Any]] = {
            "spawn": self.spawn,
            "kill": self.kill,
            "at-end": self.at_end,
            "connect": self.connect,
            "send": self.send_to_stream,
            "clock": self.clock,
            "facts": self.facts,
            "held": describe_holdings,
            "vdi": operate_vdi,
            **FileOperations().operations,
            **ImageOperations().operations,
        }

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._out(data)

    def handle(self, request: dict[str, Any]) -> None:
        """Run quick operations at once, in order; slow ones in a thread of their own."""
        op = str(request.get("op"))
        if op in SLOW:
            threading.Thread(target=self._run, args=(op, request), daemon=True).start()
        else:
            self._run(op, request)

    def _run(self, op: str, request: dict[str, Any]) -> None:
        number = request.pop("id", None)
        request.pop("op", None)
        try:
            method = self._operations.get(op)
            if method is None:
                raise VhdtoolError(f"no operation {op!r}")
            reply = {"id": number, "ok": method(**request)}
        except (VhdtoolError, OSError, TypeError, ValueError) as error:
            kind = type(error).__name__
            reply = {"id": number, "error": str(error) or kind, "type": kind}
        if number is not None:
            with contextlib.suppress(OSError):
                self.send(reply)

    # processes

    def spawn(
        self, argv: list[str], log: str, env: dict[str, str] | None = None, err: str | None = None
    ) -> int:
        """Start a process, whose output is appended to `log`; return its pid.

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
                umask=0o177,  # for the sockets that it creates
            )
        self._children[child.pid] = child
        threading.Thread(target=self._reap, args=(child,), daemon=True).start()
        return child.pid

    def _reap(self, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()
        self._children.pop(child.pid, None)
        with contextlib.suppress(OSError):
            self.send({"exited": child.pid, "status": status})

    def kill(self, pid: int, signal: int) -> bool:
        """Signal a process that this agent started; False when it is gone already."""
        child = self._children.get(pid)
        if child is None:
            return False
        child.send_signal(signal)
        return True

    def at_end(self, argv: list[str]) -> None:
        """Have a command run when the agent ends, for what is no process of its own."""
        if argv not in self._at_end:
            self._at_end.append(argv)

    # streams

    def connect(self, path: str, patience: float) -> int:
        """Connect to a Unix socket, waiting until it is there; return the stream's number.

        A terminal, such as the console of a Xen domain, is a stream too.
        """
        deadline = time.monotonic() + patience
        client: socket.socket | Terminal
        while True:
            if Path(path).is_char_device():
                client = Terminal(path)
                break
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

    def _pump(self, number: int, client: "socket.socket | Terminal") -> None:
        try:
            while data := client.recv(1 << 16):
                self.send({"stream": number, "data": base64.b64encode(data).decode()})
        except OSError:
            pass
        self._streams.pop(number, None)
        with contextlib.suppress(OSError):
            self.send({"stream": number, "eof": True})

    def send_to_stream(self, stream: int, data: str) -> None:
        client = self._streams.get(stream)
        if client is None:
            raise VhdtoolError("the stream has ended")
        client.sendall(base64.b64decode(data))

    # the host

    def clock(self) -> float:
        return time.monotonic()

    def facts(self, qemu: str) -> dict[str, Any]:
        """What a driver needs to know of this host before it starts a guest."""
        cpu = Path("/proc/cpuinfo").read_text()
        return {
            "qemu": run_command([qemu, "--version"]).splitlines()[0],
            "kernel": os.uname().release,
            "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "no_kvm": why_no_kvm(cpu),
            "emulated": is_emulated(cpu),
        }

    # the end

    def end(self) -> None:
        """End all processes: TERM, a moment in which shims close their images, KILL."""
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
        for argv in self._at_end:
            with contextlib.suppress(OSError, VhdtoolError):
                run_command(argv, timeout=END_TIMEOUT)


class Terminal:
    """A terminal as a stream, with the methods of a socket that are used here."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        tty.setraw(self._descriptor)

    def recv(self, limit: int) -> bytes:
        return os.read(self._descriptor, limit)

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def why_no_kvm(cpu: str, device: str = "/dev/kvm") -> str:
    """Why no guest can run on KVM here, by /proc/cpuinfo and the device; empty where one can."""
    flags = set(cpu.split())
    if not {"vmx", "svm"} & flags:
        inside = "; it is a virtual machine without nested virtualization"
        return "the CPU has neither vmx nor svm" + (inside if "hypervisor" in flags else "")
    if not os.path.exists(device):
        module = "kvm_intel" if "vmx" in flags else "kvm_amd"
        return f"there is no {device}; try modprobe {module}"
    return "" if os.access(device, os.R_OK | os.W_OK) else f"{device} may not be opened"


def is_emulated(cpu: str) -> bool:
    """Whether this machine is itself a guest of QEMU without KVM."""
    if "QEMU TCG CPU" in cpu or "hypervisor" not in cpu.split():
        return "QEMU TCG CPU" in cpu
    try:
        done = subprocess.run(
            ["systemd-detect-virt", "--vm"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # It says "kvm" of QEMU with KVM.
    return done.stdout.strip() == b"qemu"


def main() -> None:
    os.umask(0o077)
    out = os.dup(1)
    # What else writes to standard output must not get into the channel.
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
