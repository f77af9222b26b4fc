"""The command of `serve --run`: it is served, and its end is the server's end."""

import os
import subprocess
import threading
from pathlib import Path

from vhdtool.nbd.sockets import Address
from vhdtool.tapdisk.ending import Ending

PATIENCE = 10.0
"""Seconds from TERM to KILL for a command that must end."""


class Command:
    """A shell command that finds the server in $uri, $nbd, $unixsocket and $port.

    It sets `ended` when it ends.
    """

    def __init__(self, text: str, uri: str, address: Address, ended: Ending) -> None:
        unix = isinstance(address, Path)
        names = {
            "uri": uri,
            "nbd": uri,
            "unixsocket": str(address) if unix else "",
            "port": "" if isinstance(address, Path) else str(address.port),
            "exportname": "",
        }
        # The service manager waits for this process, not for the command.
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        self._process = subprocess.Popen(["/bin/sh", "-c", text], env=environment | names)
        self._ended = ended
        self._waiter = threading.Thread(target=self._wait, name="command", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        self._process.wait()
        self._ended.set()

    def stop(self) -> int:
        """Ends the command if it still runs; returns its exit code, 128 + N after signal N."""
        if self._waiter.is_alive():
            self._process.terminate()
            self._waiter.join(PATIENCE)
            if self._waiter.is_alive():
                self._process.kill()
                self._waiter.join()
        code = self._process.returncode
        return code if code >= 0 else 128 - code
