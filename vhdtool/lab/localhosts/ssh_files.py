"""Keys, known hosts and the ssh_config by which Ansible, the runner and users reach the hosts."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from vhdtool.errors import LabError
from vhdtool.lab.commands import run_command
from vhdtool.lab.localhosts.processes import Process, wait_gone

CLIENT_KEY = "id_ed25519"

_SSHD_CONFIG = """\
HostKey /run/vhdlab-sshd/host_{name}
AuthorizedKeysFile /run/vhdlab-sshd/authorized_keys
ListenAddress {address}
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
"""

# ServerAlive: a connection to a lab that was killed ends by itself.
_CLIENT_CONFIG = """\
Host {name}
    HostName {address}
    ProxyCommand nsenter --net=/proc/{pid}/ns/net nc {address} 22
"""
_CLIENT_DEFAULTS = """\
Host *
    User root
    IdentityFile {control}/state/{key}
    IdentitiesOnly yes
    UserKnownHostsFile {control}/state/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    PreferredAuthentications publickey
    LogLevel ERROR
    ServerAliveInterval 5
    ServerAliveCountMax 2
    ControlMaster auto
    ControlPersist 120
    ControlPath {control}/%n
"""


def make_keys(directory: Path, hosts: Mapping[str, str]) -> None:
    """Make new keys for the client and each host, and the files that name them."""
    for name in [CLIENT_KEY, *(f"host_{host}" for host in hosts)]:
        for stale in (directory / name, directory / f"{name}.pub"):
            stale.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vhdlab", "-f"]
        try:
            run_command([*command, str(directory / name)])
        except LabError as error:
            raise LabError(f"{directory / name}: {error}") from None
    (directory / "authorized_keys").write_text((directory / f"{CLIENT_KEY}.pub").read_text())
    known = [
        f"{name},{address} " + (directory / f"host_{name}.pub").read_text()
        for name, address in hosts.items()
    ]
    (directory / "known_hosts").write_text("".join(known))
    for name, address in hosts.items():
        text = _SSHD_CONFIG.format(name=name, address=address)
        (directory / f"sshd_config-{name}").write_text(text)


def write_client_config(directory: Path, pid: int, control: Path, hosts: Mapping[str, str]) -> None:
    """Write ssh_config for a lab with the outer process `pid` and master sockets in `control`."""
    parts = [
        _CLIENT_CONFIG.format(name=name, address=address, pid=pid)
        for name, address in hosts.items()
    ]
    parts.append(_CLIENT_DEFAULTS.format(key=CLIENT_KEY, control=control))
    text = "\n".join(parts)
    target = directory / "ssh_config"
    if not target.exists() or target.read_text() != text:
        fresh = directory / "ssh_config.new"
        fresh.write_text(text)
        fresh.replace(target)


def make_control_directory(directory: Path, control: Path) -> None:
    """Make a directory with a short path: that of a control socket has at most 90 characters.

    ssh_config names the files in `directory` by the link `state`, because it cannot quote every
    path.
    """
    control.mkdir(mode=0o700, exist_ok=True)
    found = control.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise LabError(f"{control}: not a directory of ours with mode 0700; remove it")
    link = control / "state"
    link.unlink(missing_ok=True)
    link.symlink_to(directory)


def close_masters(directory: Path, control: Path, hosts: Mapping[str, str]) -> None:
    """End the ssh masters of this lab, with their connections, and remove their directory."""
    config = directory / "ssh_config"
    if config.exists():
        for name in hosts:
            if (control / name).exists():
                _close_master(config, name)
    shutil.rmtree(control, ignore_errors=True)


def _close_master(config: Path, name: str) -> None:
    answer = _ask_master(config, name, "check")
    found = re.search(r"pid=([0-9]+)", answer)
    master = Process.of(int(found[1])) if found else None
    if master is None:
        return
    _ask_master(config, name, "exit")
    if wait_gone([master], 2.0):
        master.kill()


def _ask_master(config: Path, name: str, command: str) -> str:
    """The output of `ssh -O`; "" when the master does not answer in time."""
    try:
        done = subprocess.run(
            ["ssh", "-F", str(config), "-O", command, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout
