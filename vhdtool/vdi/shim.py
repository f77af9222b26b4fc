"""The shim of a VDI on this host: its process, its sockets, and its control operations."""

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.leases.owner import Owner
from vhdtool.machine import boot_id, machine_id, process_start
from vhdtool.storage.paths import persistent_path

START_PATIENCE = 20.0
REPLY_PATIENCE = 60.0
"""Seconds. An activation reads all metadata; longer means storage that hangs."""
STATUS_PATIENCE = 3.0
"""Seconds. A shim answers `status` while another operation runs."""
END_PATIENCE = 30.0
LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path."""
_POLL = 0.005


class BackendError(VhdtoolError):
    """The shim cannot be started or reached, or it failed for a reason without a class here."""


class ShimEnded(BackendError):
    """The shim ended before it answered."""


class NoAnswer(BackendError):
    """The shim did not answer in time: what it does now is unknown."""


@dataclass(frozen=True)
class Sockets:
    """The files of a VDI's shim."""

    folder: Path
    name: str

    @classmethod
    def of(cls, image: str, folder: Path) -> "Sockets":
        """The same for every path to the image. Raises UsageError for a folder that is too long."""
        real = persistent_path(image)
        short = re.sub(r"[^A-Za-z0-9.]", "_", os.path.basename(real))[:24]
        digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
        sockets = cls(folder, f"{short}-{digest}")
        if len(os.fsencode(sockets.export)) > LONGEST_SOCKET:
            raise UsageError(f"{folder}: too long for a socket's path; name another --run-dir")
        return sockets

    @property
    def control(self) -> Path:
        return self.folder / f"{self.name}.ctl"

    @property
    def export(self) -> Path:
        return self.folder / f"{self.name}.nbd"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def remove(self) -> None:
        """Removes what a shim that is gone has left."""
        for path in (self.control, self.export, self.log):
            path.unlink(missing_ok=True)


class ShimConnection:
    """A connection to the control socket of a shim."""

    def __init__(self, client: socket.socket, control: Path, host: str) -> None:
        self.control = control
        self._client = client
        self._lines = client.makefile("rwb", buffering=0)
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        start = process_start(pid)
        self.ended = start is None
        """Whether the process has ended; the kernel may close its socket later."""
        self.owner = Owner(host, pid, start or 0, boot_id(), os.uname().nodename, machine_id())
        """The shim's process, as its lease names it."""

    def call(self, op: str, patience: float = REPLY_PATIENCE, **arguments: Any) -> dict[str, Any]:
        """One operation; the disk's status after it. Raises what the shim raises, or NoAnswer."""
        self._client.settimeout(patience)
        try:
            self._lines.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            line = self._lines.readline()
        except TimeoutError:
            raise NoAnswer(
                f"the shim (pid {self.owner.pid}) did not answer {op} in {patience:g} s; "
                "its storage may hang"
            ) from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise ShimEnded(f"the shim (pid {self.owner.pid}) ended during {op}")
        reply = json.loads(line)
        if "error" in reply:
            raise _error(reply["error"])
        status: dict[str, Any] = reply["ok"]
        return status

    def close(self) -> None:
        self._lines.close()
        self._client.close()


def _error(described: dict[str, str]) -> VhdtoolError:
    """The shim's error as the class that it had there."""
    known = {kind.__name__: kind for kind in _plain_classes(VhdtoolError)}
    return known.get(described["type"], BackendError)(described["message"])


def _plain_classes(parent: type[VhdtoolError]) -> Iterator[type[VhdtoolError]]:
    """Errors that are made from a message alone."""
    for kind in parent.__subclasses__():
        if not issubclass(kind, OSError):
            yield kind
            yield from _plain_classes(kind)


@contextlib.contextmanager
def connected(control: Path, host: str) -> Iterator[ShimConnection | None]:
    """Connects to a shim; None where no process listens."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(REPLY_PATIENCE)
    try:
        client.connect(str(control))
    except (FileNotFoundError, ConnectionRefusedError):
        client.close()
        yield None
        return
    except OSError as error:
        client.close()
        raise BackendError(f"{control}: cannot connect: {error.strerror or error}") from None
    shim = ShimConnection(client, control, host)
    try:
        yield None if shim.ended else shim
    finally:
        shim.close()


def start(sockets: Sockets, host: str, read_only: bool) -> None:
    """Starts a shim that outlives this process, and waits for its control socket.

    Raises BackendError with what the shim said.
    """
    command = [sys.executable, "-m", "vhdtool.tapdisk", "--dir", str(sockets.folder)]
    command += ["--name", sockets.name, "--host", host]
    command += ["--read-only"] if read_only else []
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    try:
        with open(sockets.log, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
            )
    except OSError as error:
        raise BackendError(f"{sockets.log}: cannot start a shim: {error.strerror}") from None
    try:
        _wait_for_socket(process, sockets, host)
    except BaseException:
        process.kill()
        process.wait()
        sockets.remove()
        raise
    # It outlives us, and is nobody's child then.
    process.returncode = 0


def _wait_for_socket(process: "subprocess.Popen[bytes]", sockets: Sockets, host: str) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while True:
        with connected(sockets.control, host) as shim:
            if shim is not None:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            lines = sockets.log.read_text(errors="replace").strip().splitlines()
            raise BackendError(f"the shim did not start: {lines[-1] if lines else 'no message'}")
        time.sleep(_POLL)


def end(shim: ShimConnection, sockets: Sockets) -> None:
    """Ends a shim whose disk is not open, and waits until its process is gone."""
    # It may end before its answer is sent.
    with contextlib.suppress(ShimEnded):
        shim.call("exit")
    deadline = time.monotonic() + END_PATIENCE
    while not shim.owner.is_gone():
        if time.monotonic() > deadline:
            raise BackendError(f"the shim (pid {shim.owner.pid}) does not end")
        time.sleep(_POLL)
    sockets.remove()
