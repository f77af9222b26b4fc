"""What the agent does with files, and short commands; standard library only, as there."""

import base64
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.lab.commands import run_command

COMMAND_TIMEOUT = 60


class FileOperations:
    """Operations of the agent; paths are those of its host."""

    def __init__(self) -> None:
        self._claim = -1
        self.operations: dict[str, Callable[..., Any]] = {
            "claim": self.claim,
            "prepare": self.prepare,
            "read": self.read,
            "write": self.write,
            "exists": self.exists,
            "remove": self.remove,
            "rename": self.rename,
            "prune": self.prune,
            "digest": self.digest,
            "free": self.free,
            "run": self.run,
            "output": self.output,
        }

    def claim(self, path: str) -> None:
        """Make this the only run on the host, for as long as the agent lives."""
        self._claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VhdtoolError("another run is using this host; wait for its end") from None

    def prepare(self, folder: str) -> None:
        """Make an empty private directory for sockets and logs."""
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, mode=0o700)

    def read(self, path: str, limit: int = 4 << 20) -> str:
        """The last `limit` bytes of a file, base64; empty when it does not exist."""
        try:
            with open(path, "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
                return base64.b64encode(stream.read(limit)).decode()
        except FileNotFoundError:
            return ""

    def write(self, path: str, data: str) -> None:
        """Write a file; `data` is base64."""
        Path(path).write_bytes(base64.b64decode(data))

    def exists(self, paths: list[str]) -> list[bool]:
        return [os.path.lexists(path) for path in paths]

    def remove(self, paths: list[str]) -> None:
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def prune(self, folder: str, pattern: str, keep: int) -> None:
        """Remove all but the newest files of a cache."""
        files = sorted(Path(folder).glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - keep)]:
            path.unlink(missing_ok=True)

    def digest(self, path: str) -> str:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def free(self, path: str) -> int:
        """Bytes that root can still write on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bfree * stat.f_frsize

    def output(self, argv: list[str]) -> str:
        """The standard output of a command."""
        return run_command(argv, timeout=COMMAND_TIMEOUT)

    def run(self, argv: list[str], env: dict[str, str] | None = None) -> None:
        run_command(argv, env=env, timeout=COMMAND_TIMEOUT)
