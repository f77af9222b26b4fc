"""The kernel's own NBD client mounts a shim: real nbd.ko and nbd-client, in a guest."""

import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.lab.guest.build import build, cpio, download, gzip_fast, kernel_package, members
from vhdtool.storage import FileStorage

MIB = 1 << 20
NEEDED = ("failover", "net_failover", "virtio_net", "nbd")
"""Modules that the lab's guest does not load, in the order in which they must be."""
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
exec > /dev/ttyS0 2>&1
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \\
    failover net_failover virtio_net nbd; do
    [ ! -f /modules/$m.ko ] || insmod /modules/$m.ko
done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
nbd-client -name any -block-size 512 -connections 2 10.0.2.100 10809 /dev/nbd0
echo "size $(cat /sys/block/nbd0/size) readonly $(cat /sys/block/nbd0/ro)"
dd if=/pattern of=/dev/nbd0 bs=64k seek=32 oflag=direct conv=fsync
dd if=/pattern of=/dev/nbd0 bs=4k seek=4096 conv=fsync
dd if=/pattern of=/dev/nbd0 bs=64k seek=512 oflag=direct conv=fsync
blkdiscard -o 33554432 -l 524288 /dev/nbd0
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/nbd0 of=/again bs=64k skip=32 count=16 iflag=direct
cmp /pattern /again && echo "the same"
nbd-client -d /dev/nbd0
echo "over"
poweroff -f
"""


@pytest.fixture(scope="module")
def guest() -> tuple[Path, Path]:
    """Kernel and initramfs of the lab, from its cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return build(cache / "vhdlab" / "guest")


def modules(scratch: Path) -> Iterator[tuple[str, bytes]]:
    for deb in download((kernel_package(),), scratch):
        for path, data in members(deb):
            name = path.rsplit("/", 1)[-1]
            if name.removesuffix(".ko") in NEEDED and name.endswith(".ko"):
                yield f"modules/{name}", data


def client() -> Iterator[tuple[str, bytes]]:
    """nbd-client and the libraries that it needs, as they are on this machine."""
    program = Path("/usr/sbin/nbd-client")
    yield "bin/nbd-client", program.read_bytes()
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in re.findall(r"(/\S+) \(0x", told):
        yield path[1:], Path(path).read_bytes()


def more(files: dict[str, bytes]) -> bytes:
    """A second initramfs: the kernel unpacks it over the first."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [(name, 0o040755, b"") for name in sorted(folders)]
    return gzip_fast(cpio(entries + [(name, 0o100755, files[name]) for name in sorted(files)]))


@contextlib.contextmanager
def served(image: Path) -> Iterator[str]:
    """`vhdtool serve` on a free port of loopback; it must end well."""
    words = [sys.executable, "-m", "vhdtool", "serve", str(image), "--tcp", "127.0.0.1:0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as shim:
        try:
            assert shim.stdout is not None
            yield shim.stdout.readline().strip().rsplit(":", 1)[1]
            shim.terminate()
            assert shim.wait(20) == 0
        finally:
            shim.kill()


def run_guest(kernel: Path, initrd: Path, port: str, console: Path) -> str:
    """What the guest said until it was over."""
    # A command, because then each connection gets its own; nothing else is within its reach.
    forward = f"tcp:10.0.2.100:10809-cmd:nc 127.0.0.1 {port}"
    words = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-M", "q35", "-accel", "tcg,thread=single", "-cpu", "qemu64", "-m", "256",
        "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet panic=1 rdinit=/init2", "-serial", f"file:{console}",
        "-netdev", f"user,id=n,restrict=on,guestfwd={forward}",
        "-device", "virtio-net-pci,netdev=n",
    ]  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(words, stdin=subprocess.DEVNULL, timeout=90, check=False)
    return console.read_text(errors="replace")


def test_the_kernels_client_writes_reads_and_discards(
    guest: tuple[Path, Path], tmp_path: Path
) -> None:
    """Over 10 s: a kernel boots on an emulated processor."""
    pattern = random.Random(5).randbytes(MIB)
    files = {**dict(modules(tmp_path)), **dict(client()), "pattern": pattern}
    files["init2"] = INIT.encode()
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes(guest[1].read_bytes() + more(files))
    image = tmp_path / "disk.vhd"
    create_dynamic(image, 64 * MIB)
    with served(image) as port:
        said = run_guest(guest[0], initrd, port, tmp_path / "console")
    assert f"size {64 * MIB // 512} readonly 0" in said, said
    assert "the same" in said, said
    assert "over" in said, said
    with FileStorage(image) as storage:
        assert check(storage).exit_code == 0
    with open_chain(image) as reader:
        assert reader.read(2 * MIB, MIB) == pattern
        assert reader.read(16 * MIB, MIB) == pattern
        # What was discarded takes no space and reads as zeros.
        assert reader.read(32 * MIB, MIB) == bytes(MIB // 2) + pattern[MIB // 2 :]
