"""A host as VDI operations know it, with real shims; many hosts can be on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from vhdtool.machine import process_start
from vhdtool.nbd.client import NbdStorage
from vhdtool.vdi.operations import Vdi
from vhdtool.vdi.shim import connected
from vhdtool.vdi.status import describe

ROOT = Path(__file__).resolve().parents[2]


class VdiHost:
    """Operations on one image. `notes` has what was said of stale keys."""

    def __init__(self, image: Path, name: str, run_dir: Path, patience: float = 30) -> None:
        self.image, self.name, self.run_dir = image, name, run_dir
        self.notes: list[str] = []
        self.vdi = Vdi(str(image), name, run_dir, patience=patience, note=self.notes.append)

    def status(self) -> dict[str, Any]:
        return describe(self.vdi)

    @property
    def state(self) -> str:
        return str(self.status()["state"])

    def keys(self) -> dict[str, str]:
        """{name: what is proven of its owner}."""
        return {key["name"]: key["owner"] for key in self.status()["keys"]}

    def kill_shim(self) -> None:
        """As a crash does; returns when the process is gone."""
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        while process_start(pid) is not None:
            pass

    def command(
        self, operation: str, *options: str, failpoint: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """`vhdtool vdi OPERATION`, as an operator types it."""
        words = [sys.executable, "-m", "vhdtool", "vdi", operation, str(self.image)]
        words += ["--host", self.name, "--run-dir", str(self.run_dir), *options]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        env |= {"VHDTOOL_FAILPOINT": failpoint} if failpoint else {}
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=env,
            timeout=60,
            check=False,
        )

    def client(self) -> NbdStorage:
        return NbdStorage(self.vdi.sockets.export, "disk")

    def end(self) -> None:
        """Ends a shim that a test has left, whatever state it is in."""
        with connected(self.vdi.control, self.name) as shim:
            if shim is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(shim.owner.pid, signal.SIGKILL)
