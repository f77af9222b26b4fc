"""A LUN for a case: an iSCSI target on one host, whose bytes are the image's file.

Whoever looks at the image looks at that file, on the target's own host: there it shares the page
cache with the target, while elsewhere on shared storage it may be old.
"""

import signal
import socket
import time

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host, RemoteError

PORT = 3261
"""Beside the port of a target that the host may have."""
NAME = "iqn.2011-02.org.vhdtool.lab:disk"
START_SECONDS = 10.0


class Target:
    """tgtd with one LUN, for the addresses of the lab's hosts only. Raises LabError."""

    def __init__(self, host: Host, image: str, initiators: list[str]) -> None:
        self.host = host
        folder = f"{host.config.private_dir}/run"
        self.log = f"{folder}/tgtd.log"
        self._env = {"TGT_IPC_SOCKET": f"{folder}/tgtd"}
        address = _number(host.config.address)
        portal = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
        self.url = f"iscsi://{portal}/{NAME}/1"
        argv = ["tgtd", "-f", "-C", "1", "--iscsi", f"portal={portal}"]
        self._pid = int(host.call("spawn", argv=argv, log=self.log, env=self._env))
        self._wait()
        self._admin("--mode", "target", "--op", "new", "--tid", "1", "-T", NAME)
        self._admin(
            *("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", image)
        )
        for one in initiators:
            self._admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", _number(one))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._admin("--mode", "sys", "--op", "show")
                return
            except RemoteError as error:
                if error.kind == "FileNotFoundError" or time.monotonic() > deadline:
                    last = self.host.read(self.log).decode(errors="replace").strip().splitlines()
                    raise LabError(
                        f"{self.host.name}: no iSCSI target; is the package tgt installed there? "
                        f"{error}; {' / '.join(last[-2:])}"
                    ) from None
                time.sleep(0.01)

    def _admin(self, *words: str) -> None:
        argv = ["tgtadm", "-C", "1", "--lld", "iscsi", *words]
        self.host.call("run", argv=argv, env=self._env)

    def end(self) -> None:
        self.host.call("kill", pid=self._pid, signal=int(signal.SIGKILL))


def _number(address: str) -> str:
    """The numeric form, which is all that the target's list of initiators takes."""
    try:
        return str(socket.getaddrinfo(address, None)[0][4][0])
    except OSError as error:
        raise LabError(f"{address}: cannot be resolved: {error.strerror}") from None
