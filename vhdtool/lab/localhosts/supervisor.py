"""The supervisor, pid 1 of the lab, and the first process of each host.

Run by `control` as `unshare --net --pid --fork --kill-child --mount --mount-proc python -m ...`.
The supervisor ends, and all processes with it, on SIGTERM, when it is killed, or when the process
outside is gone: only that one holds the write end of the pipe `lifeline`. It writes one line to the
pipe `ready` when both hosts answer.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vhdtool.errors import LabError
from vhdtool.lab.commands import run_command
from vhdtool.lab.localhosts import mounts

SSHD = "/usr/sbin/sshd"
_SSHD_DIR = "/run/vhdlab-sshd"
_START_SECONDS = 10.0


def ip_batch(commands: list[str]) -> None:
    """Run `ip` once for all commands."""
    run_command(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")


class Host:
    """One host, as the supervisor sees it: `start`, `connect`, then `await_network`."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.name = name
        self.config = config
        self.address: str = config["hosts"][name]
        self.pid = 0
        self._go = self._go_end = self._state = self._state_end = -1

    def start(self) -> None:
        """Fork the host's outer process; it waits in its new namespaces for `connect`."""
        self._go, self._go_end = os.pipe()
        self._state, self._state_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _guarded(self._outer)
        # Only the host has the write end, so that its death is read as an end.
        os.close(self._state_end)
        os.close(self._go)

    def connect(self) -> None:
        """Give the host its network card, once its namespaces exist."""
        if os.read(self._state, 1) != b"u":
            raise OSError(f"{self.name}: no namespaces")
        port = f"vh-{self.name}"
        ip_batch(
            [
                f"link add {port} type veth peer name eth0 netns {self.pid}",
                f"link set {port} master {self.config['bridge']} up",
            ]
        )
        os.write(self._go_end, b"g")

    def await_network(self) -> None:
        if os.read(self._state, 1) != b"r":
            raise OSError(f"{self.name}: no network")

    def answers(self) -> bool:
        try:
            socket.create_connection((self.address, 22), timeout=0.02).close()
        except OSError:
            return False
        return True

    def _outer(self) -> NoReturn:
        flags = mounts.NEW_NETWORK | mounts.NEW_MOUNTS | mounts.NEW_HOSTNAME | mounts.NEW_PIDS
        mounts.unshare(flags)
        os.write(self._state_end, b"u")
        if os.read(self._go, 1) != b"g":
            os._exit(1)
        first = os.fork()
        if first == 0:
            _guarded(self._first)
        _, status = os.waitpid(first, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)

    def _first(self) -> NoReturn:
        """Pid 1 of the host: makes private directories, address and sshd, then reaps orphans."""
        mounts.make_private()
        mounts.proc()
        Path("/proc/self/comm").write_text(f"vhdlab-{self.name}")
        mounts.set_hostname(self.name)
        names = (f"host_{self.name}", f"sshd_config-{self.name}", "authorized_keys")
        secrets = {name: self._file(name).read_bytes() for name in names}
        log = os.open(self._file(f"sshd-{self.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        shadow = _without_root_lock(Path("/etc/shadow"))
        for directory, mode in (("/root", 0o700), ("/tmp", 0o1777), ("/run", 0o755)):
            mounts.tmpfs(directory, mode)
        mounts.tmpfs(self.config["private_dir"], 0o700)
        os.chdir("/")
        os.makedirs("/run/sshd")
        os.mkdir(_SSHD_DIR, 0o700)
        for name, content in secrets.items():
            _write(f"{_SSHD_DIR}/{name}", content)
        self._etc("shadow", shadow, 0o600)
        self._etc("hosts", self._names().encode(), 0o644)
        prefix = self.config["prefix"]
        ip_batch(
            [
                "link set lo up",
                f"addr add {self.address}/{prefix} dev eth0",
                "link set eth0 up",
            ]
        )
        os.write(self._state_end, b"r")
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        server = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", f"{_SSHD_DIR}/sshd_config-{self.name}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )
        while True:
            pid, _ = os.wait()
            if pid == server.pid:
                os._exit(1)

    def _file(self, name: str) -> Path:
        return Path(self.config["files"]) / name

    def _names(self) -> str:
        lines = ["127.0.0.1 localhost"]
        lines += [f"{address} {name}" for name, address in self.config["hosts"].items()]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _etc(name: str, content: bytes, mode: int) -> None:
        """Bind a file of this host over /etc/`name`, where the machine has that file."""
        own = f"{_SSHD_DIR}/etc-{name}"
        _write(own, content, mode)
        if os.path.exists(f"/etc/{name}"):
            mounts.bind(own, f"/etc/{name}")


def _write(path: str, content: bytes, mode: int = 0o600) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _without_root_lock(shadow: Path) -> bytes:
    """/etc/shadow for the hosts: without PAM sshd refuses keys for a locked account."""
    try:
        lines = shadow.read_text().splitlines()
    except OSError:
        return b"root:*:19000:0:99999:7:::\n"
    opened = [
        ":".join(["root", "*", *line.split(":")[2:]]) if line.startswith("root:") else line
        for line in lines
    ]
    return ("\n".join(opened) + "\n").encode()


def _guarded(work: Any) -> NoReturn:
    """Run the body of a forked process, which must never return to its parent's code."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - the process ends here
        print(f"{error}", file=sys.stderr, flush=True)
    os._exit(1)


def _arrange_mounts(config: dict[str, Any]) -> None:
    """Make mount points and the shared directory, before the hosts copy this namespace."""
    sources = {
        config[f"{name}_dir"]: os.open(config[f"{name}_source"], os.O_PATH)
        for name in ("cache", "shared")
        if config[f"{name}_source"]
    }
    mounts.tmpfs("/run")
    for number, name in enumerate(("cache_dir", "shared_dir", "private_dir")):
        staging = f"/run/staging-{number}"
        os.mkdir(staging)
        mounts.grow(os.path.dirname(config[name]), os.path.basename(config[name]), staging)
    for target, descriptor in sources.items():
        mounts.bind(f"/proc/self/fd/{descriptor}", target)
        os.close(descriptor)
    if config["shared_dir"] not in sources:
        mounts.tmpfs(config["shared_dir"], 0o755, config["shared_size"])


def _start_hosts(config: dict[str, Any]) -> list[Host]:
    bridge = config["bridge"]
    ip_batch(
        [
            "link set lo up",
            f"link add {bridge} type bridge",
            f"addr add {config['bridge_address']}/{config['prefix']} dev {bridge}",
            f"link set {bridge} up",
        ]
    )
    hosts = [Host(name, config) for name in config["hosts"]]
    for host in hosts:
        host.start()
    for host in hosts:
        host.connect()
    for host in hosts:
        host.await_network()
    deadline = time.monotonic() + _START_SECONDS
    waiting = list(hosts)
    while waiting and time.monotonic() < deadline:
        waiting = [host for host in waiting if not host.answers()]
        time.sleep(0.005)
    if waiting:
        raise OSError(f"{waiting[0].name}: sshd does not answer")
    return hosts


def _watch(lifeline: int) -> None:
    """Reap children until the lifeline ends. A host that ended is not started again."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        readable, _, _ = select.select([lifeline, woken], [], [])
        if lifeline in readable:
            return
        os.read(woken, 4096)


def supervise(name: str, start: Callable[[dict[str, Any]], object]) -> NoReturn:
    """Be the supervisor: `start` the configured hosts, report it, and hold them to the end."""
    # sshd refuses directories that others can write, so the caller's mask must not matter.
    os.umask(0o022)
    config = json.loads(sys.argv[1])
    lifeline, lifeline_end, ready = (int(text) for text in sys.argv[2:5])
    os.close(lifeline_end)
    Path("/proc/self/comm").write_text(name)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        mounts.make_private()
        start(config)
    except (OSError, LabError) as error:
        os.write(ready, f"failed: {error}\n".encode())
        os._exit(1)
    os.write(ready, b"ready\n")
    os.close(ready)
    _watch(lifeline)
    os._exit(0)


def _start(config: dict[str, Any]) -> None:
    _arrange_mounts(config)
    _start_hosts(config)


if __name__ == "__main__":
    supervise("vhdlab", _start)
