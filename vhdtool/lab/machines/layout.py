"""The machines of a lab: names, addresses, and the command line of the QEMU that emulates each."""

from dataclasses import dataclass
from pathlib import Path

MANAGEMENT, STORAGE = "vhdlab0", "vhdlab1"
"""Bridges: one for ssh and migrations, one for the storage alone, so that it can be cut alone."""
GATEWAY = "198.18.2.1"
PREFIX = 24
EXPORT = "/export/vhdlab"
KIB_OF_MEMORY_LEFT = 1 << 20
"""Memory that the emulating machine keeps for itself."""
DOM0_MEMORY = 768
"""MiB of a Xen host that are dom0's; the rest is for guests."""
# With SMAP a Xen dom0 ends at boot; with XSAVE and AVX, TCG corrupts data without a word.
_CPU = "max,-smap,-smep,-xsave,-xsaveopt,-xsavec,-xsaves,-avx,-avx2,-f16c,-fma,-vaes,+svm"


@dataclass(frozen=True)
class Machine:
    """One emulated machine; `memory` in MiB."""

    name: str
    number: int
    memory: int
    serves: bool = False
    """Whether it is the NFS server."""

    @property
    def address(self) -> str:
        """On the management network."""
        return f"198.18.2.{self.number}"

    @property
    def storage_address(self) -> str:
        return f"198.18.3.{self.number}"

    def tap(self, bridge: str) -> str:
        """The name of its network card's other end, on a bridge."""
        return f"t{bridge[-1]}-{self.name}"


MACHINES = (
    Machine("alpha", 11, 2048),
    Machine("beta", 12, 2048),
    Machine("store", 10, 768, serves=True),
)


HYPERVISORS = ("kvm", "xen")
"""What the hosts boot: Linux, whose guests run on KVM, or Xen with Linux as its dom0."""


def memory_needed() -> int:
    """KiB of memory for all machines."""
    return KIB_OF_MEMORY_LEFT + sum(one.memory + 512 << 10 for one in MACHINES)


def _boot(machine: Machine, base: Path, hypervisor: str) -> list[str]:
    """Options for what the machine boots. QEMU gives Xen the files of -initrd as its modules."""
    linux = "root=/dev/vda rw net.ifnames=0 quiet"
    if hypervisor != "xen" or machine.serves:
        words = ["-kernel", str(base / "vmlinuz"), "-initrd", str(base / "initrd.img")]
        return [*words, "-append", f"{linux} console=ttyS0"]
    # A comma within an option of QEMU is written twice.
    kernel, initrd = (str(base / name).replace(",", ",,") for name in ("vmlinuz", "initrd.img"))
    xen = f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M"
    words = ["-kernel", str(base / "xen"), "-append", xen]
    return [*words, "-initrd", f"{kernel} {linux} console=hvc0,{initrd}"]


def qemu_command(machine: Machine, base: Path, hypervisor: str, incoming: bool) -> list[str]:
    """QEMU's command line, for the directory of the running lab. `base` holds the kernels."""
    name = machine.name
    words = ["qemu-system-x86_64", "-name", f"vhdlab-{name}", "-display", "none", "-nodefaults"]
    words += ["-M", "q35", "-accel", "tcg", "-cpu", _CPU, "-smp", "1", "-m", str(machine.memory)]
    words += _boot(machine, base, hypervisor)
    for drive, path, form in (("root", f"{name}.qcow2", "qcow2"), ("seed", f"{name}.tar", "raw")):
        readonly = ",readonly=on" if form == "raw" else ""
        words += ["-drive", f"if=none,id={drive},format={form},cache=unsafe{readonly},file={path}"]
        words += ["-device", f"virtio-blk-pci,drive={drive}"]
    for network, bridge in enumerate((MANAGEMENT, STORAGE)):
        mac = f"52:54:00:12:{network:02x}:{machine.number:02x}"
        tap = machine.tap(bridge)
        words += ["-netdev", f"tap,id=n{network},ifname={tap},script=no,downscript=no"]
        words += ["-device", f"virtio-net-pci,netdev=n{network},mac={mac},romfile="]
    words += ["-device", "virtio-rng-pci"]
    words += ["-chardev", f"file,id=c,path={name}.console,append=on"]
    words += ["-serial", "chardev:c"]
    words += ["-qmp", f"unix:{name}.qmp,server=on,wait=off"]
    return [*words, "-incoming", "defer", "-S"] if incoming else words
