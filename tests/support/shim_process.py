"""A real shim process for tests against real clients."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import wait_for
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.storage import FileStorage

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20


class ShimProcess:
    """`python -m vhdtool.tapdisk` with a disk attached; ends with the block."""

    def __init__(
        self, folder: Path, *arguments: str, size: int = 64 * MIB, failpoint: str = ""
    ) -> None:
        self.folder = folder
        self.image = folder / "disk.vhd"
        self.size = size
        self.socket = folder / "disk.nbd"
        self.control = folder / "disk.ctl"
        self.uri = f"nbd+unix:///?socket={self.socket}"
        if not self.image.exists():
            create_dynamic(self.image, size)
        words = [sys.executable, "-m", "vhdtool.tapdisk", "--dir", str(folder), "--host", "test"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "VHDTOOL_FAILPOINT": failpoint}
        with open(folder / "events", "ab") as out, open(folder / "log", "ab") as err:
            self.process = subprocess.Popen(
                [*words, *arguments], stdout=out, stderr=err, env=env, cwd=folder
            )
        self._client = socket.socket(socket.AF_UNIX)
        self._client.settimeout(30)
        wait_for(
            self._connects,
            20,
            failure="the control socket did not come",
            process=self.process,
            log=folder / "log",
            interval=0.005,
        )
        self._lines = self._client.makefile("rwb", buffering=0)

    def _connects(self) -> bool:
        try:
            self._client.connect(str(self.control))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def do(self, op: str, **more: Any) -> dict[str, Any]:
        """One control operation. Raises ConnectionError when the process dies of it."""
        self._lines.write(json.dumps({"op": op, **more}).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise ConnectionError(op)
        answer: dict[str, Any] = json.loads(line)
        assert "ok" in answer, answer
        result: dict[str, Any] = answer["ok"]
        return result

    def activate(self) -> Self:
        self.do("attach", path=str(self.image), size=self.size)
        self.do("activate")
        return self

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events").read_text().splitlines()]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def terminate(self) -> int:
        """TERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(30)

    def verdict(self) -> int:
        with FileStorage(self.image) as storage:
            return check(storage).exit_code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def run(*words: str, check: bool = True) -> str:
    """Standard output of a command; a failure shows both outputs."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    if check:
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@dataclass
class Served:
    """A running `vhdtool serve`: where it listens, and what it says on standard error."""

    uri: str
    process: "subprocess.Popen[str]"
    errors: Path

    def log(self) -> list[str]:
        return self.errors.read_text().splitlines()


@contextmanager
def serving(
    image: Path,
    *options: str,
    prefix: Sequence[str] = (),
    errors: Path | None = None,
    env: dict[str, str] | None = None,
    status: int | None = 0,
) -> Iterator[Served]:
    """`vhdtool serve` of an image; ends it with TERM and wants that exit. It may log, not crash.

    `prefix`: a command that runs it; `errors`: where it logs, else beside the image.
    """
    errors = errors or image.with_name(image.name + ".err")
    with errors.open("w") as err:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "vhdtool", "serve", str(image), *options],
            stdout=subprocess.PIPE, stderr=err, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        uri = process.stdout.readline().strip()
        assert uri, errors.read_text()
        yield Served(uri, process, errors)
        process.terminate()
        ended = process.wait(60)
        assert status in (None, ended), errors.read_text()
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.communicate()


def wait_tapdisk_gone(run_dir: Path, pid: str) -> None:
    """Waits until a tapdisk has removed its control socket."""
    control = run_dir / f"ctl{pid}"
    wait_for(lambda: not control.exists(), failure=f"tapdisk {pid} has not ended")
