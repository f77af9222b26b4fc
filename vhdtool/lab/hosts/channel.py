"""A command on a host over the user's own `ssh`: bytes in, bytes out, and the reason of its end.

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
"""Seconds from the end of the input to a kill of ssh, in which the agent ends its processes."""
_OPTIONS = (
    "BatchMode=yes",  # never ask for a password
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",  # a host that is gone is noticed after 30 s
)
_NO_CONNECTION = 255
"""Exit code of ssh for its own errors; any other is the command's."""


class Channel:
    """One ssh process. `host` is a name of ssh_config; None as `ssh_config` means the user's."""

    def __init__(self, host: str, ssh_config: Path | None, command: list[str]) -> None:
        self.host = host
        argv = ["ssh"]
        if ssh_config is not None:
            # A relative path: for a jump ssh puts it into a shell command without quotes, and
            # the absolute path may contain a space.
            argv += ["-F", os.path.relpath(ssh_config)]
        self.login = shlex.join([*argv, host])
        """The command by which a user can see whether the host can be reached."""
        argv += ["-T", *(word for option in _OPTIONS for word in ("-o", option))]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        # A socket, not a pipe: shutdown ends it although a forked process has a copy.
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*argv, "--", host, shlex.join(command)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                # Not in the terminal's session: Ctrl-C must not end the channel before the run has
                # cleaned up, and no ssh may ask for a password there.
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
        """Whether the command has sent anything, so that the host was reached."""

    def send(self, data: bytes) -> None:
        """Raises OSError when the process is gone."""
        self._socket.sendall(data)

    def receive(self, limit: int = 1 << 18) -> bytes:
        """Bytes that have arrived; b"" at the end."""
        data = self._socket.recv(limit)
        self.heard = self.heard or bool(data)
        return data

    def why_it_ended(self) -> str:
        """The reason, in one line. For use after the end of the output, or after a timeout."""
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
        """End the input, wait for the command to end, and kill ssh when it does not."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self._errors.close()
