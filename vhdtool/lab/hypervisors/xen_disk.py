"""A guest's disk in dom0: the kernel's nbd client on a shim, or a file of zeros without one."""

import time

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.driver import Disk

DEVICES = 16
"""Devices that the module nbd makes."""
CONNECT_SECONDS = 30.0


class XenDisk:
    """One block device of a host; `name` is the path of its files, without suffix."""

    NAMES = ("xvda", "xvdb", "xvdc")
    """The guest's devices, all of them this disk, so that it has several queues."""

    def __init__(self, host: Host, name: str, disk: Disk) -> None:
        self.device: str | None = None
        self._host, self._name, self._disk = host, name, disk
        self._client: int | None = None
        self._target = ""

    @property
    def connected(self) -> bool:
        return self.device is not None

    def connect(self, target: str) -> None:
        """Make the device, and `target` a name of it, which the block script gets."""
        if self._disk.socket is None:
            blank = f"{self._name}.blank"
            self._run("truncate", "-s", str(self._disk.size), blank)
            words = ["losetup", "--find", "--show", blank]
            self.device = self._host.call("output", argv=words).strip()
        else:
            self.device = self._connect_nbd(self._disk.socket)
        self._target = target
        self._run("ln", "-sfn", self.device, target)

    def _connect_nbd(self, socket: str) -> str:
        marks = [f"/sys/block/nbd{n}/pid" for n in range(DEVICES)]
        used = self._host.call("exists", paths=marks)
        if all(used):
            raise LabError(f"{self._host.name}: all {DEVICES} nbd devices are in use")
        number = used.index(False)
        device, log = f"/dev/nbd{number}", f"{self._name}.nbd.log"
        words = ["nbd-client", "-unix", socket, device, "-b", "512", "-nofork", "-nonetlink"]
        self._client = self._host.call("spawn", argv=words, log=log)
        deadline = time.monotonic() + CONNECT_SECONDS
        while not self._host.call("exists", paths=[marks[number]])[0]:
            if time.monotonic() > deadline:
                said = self._host.last_line(log)
                raise LabError(f"{self._host.name}: nbd-client does not connect: {said}")
            time.sleep(0.02)
        return device

    def disconnect(self) -> None:
        """Release the device; no domain has it any more."""
        device, self.device = self.device, None
        if device is None:
            return
        words = ["nbd-client", "-d"] if self._client is not None else ["losetup", "-d"]
        self._run(*words, device)
        self._host.call("remove", paths=[self._target, f"{self._name}.blank"])

    def _run(self, *words: str) -> None:
        self._host.call("run", argv=list(words))
