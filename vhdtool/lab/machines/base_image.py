"""Builder of the machines' disk image: Debian 12 with the lab's packages, cached by its inputs."""

import hashlib
import json
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from vhdtool.errors import LabError
from vhdtool.lab.commands import last_line, run_command
from vhdtool.lab.localhosts.processes import descendants, end
from vhdtool.lab.machines.cache import Progress, building

SUITE = "bookworm"
PACKAGES = (
    "linux-image-amd64", "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "openssh-server",
    "python3", "nbd-client", "nfs-kernel-server", "nfs-common", "tgt", "libiscsi7",
    "qemu-system-x86", "qemu-utils", "iproute2", "kmod", "udev", "systemd-sysv", "dbus",
    "netcat-openbsd", "procps", "psmisc",
)  # fmt: skip
SIZE = "4G"
FREE_NEEDED = 6 << 30
UNITS_OFF = (
    "nfs-server.service", "rpcbind.service", "rpcbind.socket", "tgt.service", "xen.service",
    "xendomains.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer",
    "fstrim.timer", "dpkg-db-backup.timer", "blk-availability.service", "qemu-guest-agent.service",
    "e2scrub_reap.service", "nfs-blkmap.service", "systemd-timesyncd.service",
)  # fmt: skip
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 0\n",
    "etc/nfs.conf": "[nfsd]\nvers3=n\ngrace-time=10\nlease-time=10\nthreads=4\n",
    "etc/ssh/sshd_config.d/vhdlab.conf": (
        "UseDNS no\nPrintMotd no\nPrintLastLog no\nUsePAM no\nMaxSessions 100\nMaxStartups 100\n"
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
    ),
    "etc/systemd/system/vhdlab-seed.service": """\
[Unit]
Description=This machine's own files, from its second disk
DefaultDependencies=no
After=systemd-remount-fs.service systemd-udev-settle.service local-fs.target
Before=network.target ssh.service multi-user.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'tar -x -f /dev/vdb -C / && exec /etc/vhdlab/start'
[Install]
WantedBy=multi-user.target
""",
}
"""Files of the image; they and the lists above are the key of the cache."""
_INITRAMFS = {
    "etc/initramfs-tools/conf.d/vhdlab": "MODULES=list\nCOMPRESS=gzip\n",
    "usr/share/initramfs-tools/modules.d/vhdlab": "virtio_pci\nvirtio_blk\nvirtio_net\next4\n",
}
_TOGETHER = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child",
    "--mount-proc",
)  # fmt: skip
_NO_FILES = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def key() -> str:
    """Changes with everything that goes into the image, but not with versions of packages."""
    inputs = [SUITE, PACKAGES, SIZE, UNITS_OFF, FILES, _INITRAMFS, _NO_FILES]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def base_image(cache: Path, progress: Progress) -> Path:
    """The directory with disk.img, vmlinuz, initrd.img and xen; built when it is not there.

    The caller is root and has locked the cache. Raises LabError.
    """
    folder = cache / f"base-{key()}"
    if folder.exists():
        return folder
    install_missing(progress)
    with building(folder, FREE_NEEDED) as scratch:
        progress("building the machines' disk image (Debian 12; once, a minute or more)")
        rootfs, made = scratch / "rootfs", scratch / "made"
        _bootstrap(rootfs, scratch, progress)
        _configure(rootfs)
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd.img", "initrd.img-*")):
            shutil.copyfile(_only(rootfs / "boot", pattern), made / name)
        xen = _output(["gzip", "-dc", str(_only(rootfs / "boot", "xen-4*.gz"))])
        (made / "xen").write_bytes(xen)
        progress("writing the file system")
        command = ["mke2fs", "-q", "-t", "ext4", "-F", "-E", "lazy_itable_init=1,nodiscard"]
        image = str(made / "disk.img")
        run_command([*command, "-O", "metadata_csum", "-d", str(rootfs), image, SIZE])
    return folder


def install_missing(progress: Progress) -> None:
    """Install the tools that build the image, where they are missing. Raises LabError."""
    tools = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "gzip": "gzip"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if not missing:
        return
    progress(f"installing {', '.join(missing)}")
    try:
        words = ["apt-get", "-q", "-y", "install", "--no-install-recommends", *missing]
        run_command(words, env={"DEBIAN_FRONTEND": "noninteractive"})
    except (LabError, OSError) as error:
        raise LabError(f"missing: {', '.join(missing)}; install them by hand ({error})") from error


def _bootstrap(rootfs: Path, scratch: Path, progress: Progress) -> None:
    for name, content in _INITRAMFS.items():
        _write(scratch / "first" / name, content)
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory"]
    command += [f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NO_FILES]
    command += [f'--essential-hook=cp -rT {shlex.quote(f"{scratch}/first")} "$1"']
    log = scratch / "log"
    with open(log, "wb") as out:
        # In a namespace of processes that ends with this one: killed, it leaves no writer behind.
        words = [*_TOGETHER, *command, SUITE, str(rootfs)]
        child = subprocess.Popen(words, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            begun, said = time.monotonic(), ""
            while child.poll() is None:
                time.sleep(0.5)
                last = last_line(log)
                if last != said or time.monotonic() - begun > 10:
                    begun, said = time.monotonic(), last
                    progress(f"  {last}")
        finally:
            end(descendants(child.pid))
            child.wait()
    if child.returncode:
        raise LabError(f"mmdebstrap: {last_line(log)}; is there a network, and a Debian keyring?")


def _configure(rootfs: Path) -> None:
    for name, content in FILES.items():
        _write(rootfs / name, content)
    for stale in (rootfs / "etc/ssh").glob("ssh_host_*"):
        stale.unlink()
    units = [unit for unit in UNITS_OFF if list(rootfs.glob(f"*/systemd/system/{unit}"))]
    for verb, names in (("disable", units), ("enable", ["vhdlab-seed.service", "ssh.service"])):
        run_command(["systemctl", f"--root={rootfs}", "--quiet", verb, *names])


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise LabError(f"the packages brought no {pattern}")
    return found[-1]


def _output(words: list[str]) -> bytes:
    """The output of a command as bytes. Raises LabError."""
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"{words[0]}: exit status {done.returncode}")
    return done.stdout
