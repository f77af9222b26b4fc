"""Real daemons that keep leases, for tests: two of sanlock, as on two hosts; an iSCSI target."""

import os
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_for

MIB = 1 << 20


class Sanlock:
    """A daemon of its own, with a host id in the lockspace "lab"; ends with the block.

    SANLOCK_PRIVILEGED=0 is the daemon's mode for machines that do not let it lock its memory.
    """

    def __init__(self, folder: Path, shared: Path, host_id: int) -> None:
        self.run_dir, self.host_id = folder, host_id
        self.space = f"lab:{host_id}:{shared / 'ids'}:0"
        self.env = {**os.environ, "SANLOCK_RUN_DIR": str(folder), "SANLOCK_PRIVILEGED": "0"}
        folder.mkdir(mode=0o700)
        words = ["sanlock", "daemon", "-D", "-U", "root", "-G", "root"]
        for option in ("-w 0", "-h 0", "-l 0", "-L -1", "-S -1"):
            words += option.split()
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                words, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(
            (folder / "sanlock.sock").exists,
            failure="sanlock's daemon did not start",
            process=self.process,
            log=folder / "log",
        )

    def client(self, *words: str) -> "subprocess.Popen[str]":
        """A command of `sanlock client`, started."""
        return subprocess.Popen(
            ["sanlock", "client", *words],
            env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str) -> str:
        return succeeded(self.client(*words))

    def join(self) -> "subprocess.Popen[str]":
        """Joins the lockspace, which takes 3 s where a request may take 1 s."""
        return self.client("add_lockspace", "-s", self.space, "-o", "1")

    def stop(self) -> None:
        """Kills daemon and helper, as a crash would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.returncode is None:
            self.stop()


def succeeded(command: "subprocess.Popen[str]") -> str:
    """What it said."""
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 0, out
    return out


def joined(shared: Path, daemons: list[Sanlock]) -> None:
    """Makes the lockspace on the shared storage, and lets all daemons join it at once."""
    (shared / "ids").write_bytes(bytes(MIB))
    daemons[0].run("init", "-s", f"lab:0:{shared / 'ids'}:0", "-o", "1")
    for command in [daemon.join() for daemon in daemons]:
        succeeded(command)


def new_resource(daemon: Sanlock, path: Path) -> str:
    """Makes a lease on the shared storage; returns it as sanlock writes it."""
    path.write_bytes(bytes(MIB))
    daemon.run("init", "-r", f"lab:{path.name}:{path}:0")
    return f"lab:{path.name}:{path}:0"


class Target:
    """tgtd with a LUN, on a port and a control socket of its own; ends with the block."""

    NAME = "iqn.2026-01.test.vhdtool:disk"

    def __init__(self, folder: Path, size: int = 64 * MIB) -> None:
        self.backing = folder / "lun"
        self.env = {**os.environ, "TGT_IPC_SOCKET": str(folder / "tgtd")}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._log = folder / "tgtd.log"
        words = ["tgtd", "-f", "-C", "1", "--iscsi", f"portal=127.0.0.1:{self.port}"]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(words, env=self.env, stdout=log, stderr=log)
        wait_for(
            lambda: self._admin("--mode", "sys", "--op", "show").returncode == 0,
            failure="tgtd did not start",
            process=self.process,
            log=self._log,
        )
        self.backing.touch()
        os.truncate(self.backing, size)
        for text in (
            f"--mode target --op new --tid 1 -T {self.NAME}",
            f"--mode logicalunit --op new --tid 1 --lun 1 -b {self.backing}",
            "--mode target --op bind --tid 1 -I ALL",
        ):
            done = self._admin(*text.split())
            assert done.returncode == 0, done.stderr

    def _admin(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["tgtadm", "-C", "1", "--lld", "iscsi", *words],
            env=self.env, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip

    def url(self, host: str = "127.0.0.1") -> str:
        """Within one process another name of the host is another session, as of another host."""
        return f"iscsi://{host}:{self.port}/{self.NAME}/1"

    def sessions(self) -> int:
        shown = self._admin("--mode", "target", "--op", "show").stdout
        return shown.count("I_T nexus: ")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
