"""The command line of QEMU: a machine whose guest migrates, and its disk.

Facts (QEMU 7.2, measured; docs/strategies.md): `thread=single`, because TCG can otherwise corrupt
the guest's memory in a migration; with `cyls/heads/secs` given QEMU sends no request to a disk that
it attaches; `reconnect-delay` hides a shim that restarts.
"""

from dataclasses import dataclass

from vhdtool.lab.hypervisors.driver import Disk

MEMORY_MIB = 192
THROTTLED = (("deep1", 60, "write-cache=on"), ("deep2", 20, "write-cache=off"))
"""Name, requests a second, and caching of the devices that the deep half of the load uses. A
request takes some 600 ms, so that a guest that gets little of a busy machine keeps them full.
Writes of the guest through the second one have FUA."""


@dataclass(frozen=True)
class Machine:
    """What source and destination must have in common for a migration."""

    kernel: str
    initrd: str
    accelerator: str

    def board(self) -> list[str]:
        """The options that the state of a running guest depends on."""
        accel = "kvm" if self.accelerator == "kvm" else "tcg,thread=single"
        return ["-M", "q35", "-accel", accel, "-cpu", "qemu64", "-m", str(MEMORY_MIB), "-smp", "1"]

    def argv(self, qemu: str, disk: Disk, qmp: str, console: str) -> list[str]:
        """The whole command line, with the paths of its two sockets."""
        # Pace and blackout are measured: other load of the machine must not count.
        line = ["nice", "-n", "-10", qemu, *self.board(), "-nodefaults", "-no-user-config"]
        line += ["-display", "none", "-no-reboot", "-kernel", self.kernel, "-initrd", self.initrd]
        line += ["-append", "console=ttyS0 quiet panic=1", *self.disks(disk)]
        for name, path in (("qmp", qmp), ("console", console)):
            line += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
        return [*line, "-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]

    def disks(self, disk: Disk) -> list[str]:
        """The disk by three devices: one without limits, and two that QEMU throttles.

        However fast a shim answers, the two have requests in flight at any moment, and so when
        the guest is stopped; QEMU sends all of them then.
        """
        node = _blockdev(disk)
        device = "virtio-blk-pci,share-rw=on,werror=stop,rerror=stop,cyls=1024,heads=16,secs=63"
        line = ["-blockdev", f"{node},node-name=disk", "-device", f"{device},drive=disk"]
        for name, iops, caching in THROTTLED:
            line += ["-object", f"throttle-group,id=pace-{name},x-iops-total={iops}"]
            line += ["-blockdev", f"{node},node-name=at-{name},discard=unmap"]
            throttle = f"throttle,node-name={name},file=at-{name},throttle-group=pace-{name}"
            line += ["-blockdev", f"driver={throttle},discard=unmap"]
            line += ["-device", f"{device},drive={name},id={name},{caching}"]
        return line


def _blockdev(disk: Disk) -> str:
    """`-blockdev` of the disk, without its node name."""
    if disk.socket is None:
        return f"driver=null-co,size={disk.size},read-zeroes=on"
    server = f"server.type=unix,server.path={disk.socket}"
    return f"driver=nbd,{server},cache.direct=on,reconnect-delay=10"
