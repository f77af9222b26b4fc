"""A command on a host over the user's own `ssh`: bytes in, bytes out, and why it ended.

OpenSSH reads ssh_config itself, so every host that `ssh -F FILE HOST` reaches without a question
is reached here too, and in the same way: ProxyJump, Include, Match, agents, encrypted keys,
certificates, a ControlMaster that is there already.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import tempfile
from pathlib import Path

from vhdtool.errors import LabError

GRACE = 5.0
"""Seconds between the end of the input and a kill of ssh: the agent ends its processes first."""
_OPTIONS = (
    "BatchMode=yes",  # no questions: nobody is there to answer
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",  # a host that vanished is noticed after half a minute
)
_NO_CONNECTION = 255
"""Exit code of ssh for its own errors; any other is the command's."""


class Channel:
    """One ssh process. `host` is a name of ssh_config; None as `ssh_config` means the user's."""

    def __init__(self, host: str, ssh_config: Path | None, command: list[str]) -> None:
        self.host = host
        argv = ["ssh"]
        if ssh_config is not None:
            # Relative to here: for a jump ssh puts this name into a shell command as it stands,
            # and the absolute one may have a space in it.
            argv += ["-F", os.path.relpath(ssh_config)]
        self.login = shlex.join([*argv, host])
        """What a person would type to see whether the host can be reached."""
        argv += ["-T", *(word for option in _OPTIONS for word in ("-o", option))]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        # A socket and not a pipe: its end can be said although a forked process has a copy of it.
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*argv, "--", host, shlex.join(command)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                # Away from the terminal: its Ctrl-C must not end the channel by which the run
                # cleans up, and neither ssh nor one that it starts for a jump may ask there.
                start_new_session=True,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except OSError as error:
            self._socket.close()
            self._errors.close()
            raise LabError(f"ssh cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        self.heard = False
        """Whether the command has said anything, so that the host was reached."""

    def send(self, data: bytes) -> None:
        """Raises OSError when the process is gone."""
        self._socket.sendall(data)

    def receive(self, limit: int = 1 << 18) -> bytes:
        """What has arrived; b"" at the end."""
        data = self._socket.recv(limit)
        self.heard = self.heard or bool(data)
        return data

    def why_it_ended(self) -> str:
        """In one line. To be asked after the end of the output, or instead of it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        lines = self._last_lines()
        if self._process.returncode not in (None, _NO_CONNECTION):
            return f"the agent ended: {lines[-1] if lines else 'it said nothing'}"
        if self.heard:
            return f"the SSH connection was lost: {lines[-1] if lines else 'ssh said nothing'}"
        reason = " / ".join(lines) or "no answer"
        return f"no SSH connection to {self.host}: {reason}; try `{self.login} true`"

    def _last_lines(self) -> list[str]:
        try:
            end = os.fstat(self._errors.fileno()).st_size
            text = os.pread(self._errors.fileno(), 4096, max(0, end - 4096))
        except (OSError, ValueError):
            return []
        lines = (line.strip() for line in text.decode(errors="replace").splitlines())
        return [line for line in lines if line][-3:]

    def close(self) -> None:
        """Ends the input, waits for the command's end, and ends ssh if that does not come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self._errors.close()
