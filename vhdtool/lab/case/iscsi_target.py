"""A LUN for a case: an iSCSI target on one host, whose bytes are the image's file.

Snapshots read the file on the target's own host, where it shares the target's page cache; other
hosts may see older content.
"""

import signal
import socket
import time

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host, RemoteError

PORT = 3261
"""Not 3260, which a target of the host may use."""
NAME = "iqn.2011-02.org.vhdtool.lab:disk"
START_SECONDS = 10.0


class Target:
    """A tgtd with one LUN, which only these initiators may use. Raises LabError."""

    def __init__(self, host: Host, image: str, initiators: list[str]) -> None:
        self.host = host
        folder = f"{host.config.private_dir}/run"
        self.log = f"{folder}/tgtd.log"
        self._env = {"TGT_IPC_SOCKET": f"{folder}/tgtd"}
        address = _numeric(host.config.address)
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
            self._admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", _numeric(one))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._admin("--mode", "sys", "--op", "show")
                return
            except RemoteError as error:
                if error.kind == "FileNotFoundError" or time.monotonic() > deadline:
                    raise LabError(
                        f"{self.host.name}: no iSCSI target; is the package tgt installed there? "
                        f"{error}; {self.host.last_line(self.log)}"
                    ) from None
                time.sleep(0.01)

    def _admin(self, *words: str) -> None:
        argv = ["tgtadm", "-C", "1", "--lld", "iscsi", *words]
        self.host.call("run", argv=argv, env=self._env)

    def end(self) -> None:
        self.host.call("kill", pid=self._pid, signal=int(signal.SIGKILL))


def _numeric(address: str) -> str:
    """The numeric form of an address, as the target's list of initiators needs it."""
    try:
        return str(socket.getaddrinfo(address, None)[0][4][0])
    except OSError as error:
        raise LabError(f"{address}: cannot be resolved: {error.strerror}") from None
