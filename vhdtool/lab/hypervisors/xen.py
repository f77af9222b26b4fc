"""Xen as a driver: PVH domains, driven by xl; the runner holds the switch.

The guest reaches the shim through the kernel's nbd client in dom0 (xen_disk). A migration is
`xl migrate` with the relay of xen_stream in place of ssh. The relay holds back the message by which
the destination says that it has all memory: the guest is suspended then. By libxl's own order the
destination's disk is attached before that moment, and the source's is detached after the guest runs
again.
"""

from collections.abc import Sequence
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.driver import Disk, Hold, Progress, Watch
from vhdtool.lab.hypervisors.xen_disk import XenDisk
from vhdtool.lab.hypervisors.xen_transfer import XenTransfer
from vhdtool.lab.hypervisors.xl import (
    INCOMING,
    MIGRATED,
    PREFIX,
    destroy,
    domains,
    output,
    runs,
    xl,
)

MEMORY_MIB = 128


class XenDriver:
    """Domains with this kernel and initramfs."""

    hold = Hold.SWITCH
    discards = False
    accelerator = "pvh"

    def __init__(self, kernel: str, initrd: str, accelerator: str) -> None:
        self._kernel, self._initrd = kernel, initrd
        self._versions: dict[str, str] = {}

    def prepare(self, hosts: Sequence[Host], progress: Progress) -> None:
        for host in hosts:
            try:
                found = xl(host, "info", "xen_version")
            except LabError as error:
                raise LabError(
                    f"{host.name}: xl does not work ({error}); boot the host with Xen, and start "
                    "its services (systemctl start xen)"
                ) from error
            self._versions[host.name] = found.strip()
            # A killed run has left them; this one has the host for itself.
            left = {name for name, _ in domains(host).values() if name.startswith(PREFIX)}
            destroy(host, left)
        if len(set(self._versions.values())) > 1:
            progress(f"the hosts differ: Xen {' and '.join(self._versions.values())}")

    def fingerprint(self, host: Host, disk_bytes: int) -> list[str]:
        files = [host.call("digest", path=path) for path in (self._kernel, self._initrd)]
        return ["xen", self._versions[host.name], *files, self.config("", "")]

    def guest(self, host: Host, name: str, disk: Disk, watch: Watch) -> "XenGuest":
        return XenGuest(self, host, name, disk, watch)

    def config(self, domain: str, target: str) -> str:
        """The configuration of a domain that boots, or whose memory is restored."""
        disk = "format=raw,access=rw,script=block-vhd"
        disks = ", ".join(f"'{disk},vdev={name},target={target}'" for name in XenDisk.NAMES)
        lines = [
            f"name = '{domain}'",
            "type = 'pvh'",
            f"kernel = '{self._kernel}'",
            f"ramdisk = '{self._initrd}'",
            "cmdline = 'console=hvc0 quiet panic=1'",
            f"memory = {MEMORY_MIB}",
            "vcpus = 1",
            # Both are needed where the hosts are emulated: Xen 4.17 on QEMU's TCG.
            "cpuid = 'host,rdtscp=0'",
            "tsc_mode = 'native'",
            "on_crash = 'destroy'",
            f"disk = [{disks}]",
        ]
        return "\n".join(lines) + "\n"


class XenGuest:
    """One domain, and the disk in dom0 that it is attached to."""

    devices = len(XenDisk.NAMES)

    def __init__(self, driver: XenDriver, host: Host, name: str, disk: Disk, watch: Watch) -> None:
        folder = f"{host.config.private_dir}/run"
        self.host = host
        self.log = f"{folder}/{name}.log"
        self.domain = f"{PREFIX}{name}"
        """A migrated domain keeps the name that it had at its source."""
        self._watch = watch
        self.number: int | None = None
        """The domain's number on this host, once it exists."""
        self._driver = driver
        self._file = f"{folder}/{name}"
        self._disk = XenDisk(host, f"{folder}/{name}", disk)
        self._stream: int | None = None
        self._ended = False
        self.migration: XenTransfer | None = None
        """The migration by which it leaves this host."""

    @property
    def alive(self) -> bool:
        return self.number is not None and not self._ended

    def boot(self) -> None:
        self._run("create", self._write_config())

    def run_from(self, path: str) -> None:
        self._run("restore", self._write_config(), path)

    def _write_config(self) -> str:
        path = f"{self._file}.cfg"
        self.attach_disk()
        self.host.write(path, self._driver.config(self.domain, self.target).encode())
        return path

    def _run(self, verb: str, *files: str) -> None:
        """Have xl make the domain, and connect to its console before it can have said anything."""
        self.host.call("at-end", argv=["xl", "destroy", self.domain])
        xl(self.host, verb, "-p", *files)
        self.find_console(self.domain)
        xl(self.host, "unpause", self.domain)

    @property
    def target(self) -> str:
        """The same on every host, as the domain takes its configuration along."""
        return f"{self.host.config.private_dir}/run/{self.domain}.disk"

    def attach_disk(self) -> None:
        """Connect the disk to dom0, under the name that the domain's configuration has."""
        self._disk.connect(self.target)

    def find_console(self, domain: str) -> None:
        """Connect to the console of a domain that does not run yet."""
        self.number = int(xl(self.host, "domid", domain))
        path = f"/local/domain/{self.number}/console/tty"
        tty = output(self.host, "xenstore-read", path).strip()
        self._stream = self.host.connect(tty, self._watch.console)

    def save(self, path: str) -> None:
        xl(self.host, "save", self.domain, path)
        self._ended = True

    def migrate_to(self, destination: "XenGuest", port: int) -> "XenTransfer":
        destination.domain = self.domain
        for suffix in (INCOMING, ""):
            destination.host.call("at-end", argv=["xl", "destroy", f"{self.domain}{suffix}"])
        destination.attach_disk()
        self.migration = XenTransfer(self, destination, port)
        return self.migration

    def send(self, line: str) -> None:
        assert self._stream is not None
        self.host.send(self._stream, line.encode() + b"\n")

    def runs(self) -> bool:
        """Whether the domain runs on this host."""
        return runs(self.host, self.number)

    def last_words(self) -> str:
        return self.host.last_line(self.log)

    def kill(self) -> None:
        """Destroy the domain, also one that is not complete yet, and release its disk."""
        self._ended = True
        if self.migration is not None:
            self.migration.end()
        names = {self.domain + suffix for suffix in ("", INCOMING, MIGRATED)}
        if self._disk.connected:
            destroy(self.host, names)
            self._disk.disconnect()

    def describe(self) -> dict[str, Any]:
        return {"id": self.number, "domain": self.domain, "disk": self._disk.device}
