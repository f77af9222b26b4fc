"""Real daemons that keep leases, for tests: two of sanlock, as on two hosts."""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

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
        deadline = time.monotonic() + 10
        while not (folder / "sanlock.sock").exists():
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "sanlock's daemon did not come"
            time.sleep(0.01)

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
