"""The files of one machine's own: a tar archive on its second disk, unpacked at boot."""

import io
import tarfile
from pathlib import Path

from vhdtool.lab.machines.layout import EXPORT, MACHINES, PREFIX, Machine

_SERVER = """\
mkdir -p {export}
echo '{export} {network}(rw,sync,no_root_squash,no_subtree_check)' > /etc/exports
systemctl start --no-block nfs-server
"""
_HOST = """\
modprobe nbd max_part=0 || true
if [ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ]; then
    systemctl start --no-block xen
else
    modprobe kvm_amd nested=0 || true
fi
"""


def write_seed(machine: Machine, keys: Path, out: Path) -> None:
    """Write the archive; `keys` has the host's key and the keys that may log in."""
    start = f"""\
#!/bin/sh
hostname {machine.name}
ip link set lo up
ip addr add {machine.address}/{PREFIX} dev eth0
ip link set eth0 up
ip addr add {machine.storage_address}/{PREFIX} dev eth1
ip link set eth1 up
"""
    start += _SERVER.format(export=EXPORT, network="198.18.3.0/24") if machine.serves else _HOST
    names = "127.0.0.1 localhost\n" + "".join(
        f"{one.address} {one.name}\n{one.storage_address} {one.name}-storage\n" for one in MACHINES
    )
    host_key = (keys / f"host_{machine.name}").read_bytes()
    files = {
        "etc/hostname": (f"{machine.name}\n".encode(), 0o644),
        "etc/hosts": (names.encode(), 0o644),
        "etc/vhdlab/start": (start.encode(), 0o755),
        "etc/ssh/ssh_host_ed25519_key": (host_key, 0o600),
        "root/.ssh/authorized_keys": ((keys / "authorized_keys").read_bytes(), 0o600),
    }
    with tarfile.open(out, "w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    out.chmod(0o600)
