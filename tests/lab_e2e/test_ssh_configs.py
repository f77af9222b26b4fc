"""Every host that `ssh -F FILE HOST` reaches is reached by the lab's channel, and no other.

OpenSSH is the peer: each configuration is tried with `ssh` itself and with `Host`, against real
sshds. beta has an address that only alpha reaches, so alpha is its bastion.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sudo_user import sudo_user
from tests.support.waiting import wait_for
from vhdtool.errors import LabError
from vhdtool.lab.hosts.bundle import write as write_bundle
from vhdtool.lab.hosts.connection import Host, HostConfig
from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HOSTS, HostOptions

BUNDLE = "vhdtool.zip"
PLACE = "my proj (1) 100% ü"
PASSPHRASE = "correct horse"

BASE = """
Host *
    User root
    UserKnownHostsFile "{q}/known"
    GlobalKnownHostsFile /dev/null
    LogLevel ERROR
"""
KEY = '    IdentityFile "{q}/key"\n    IdentitiesOnly yes\n'
AGENT = '    IdentityAgent "{q}/agent"\n'
DIRECT = """
Host bastion
    HostName {alpha}
    HostKeyAlias alpha
    ProxyCommand nsenter --net=/proc/{pid}/ns/net nc {alpha} 22
"""
BEHIND = "Host kvm1\n    HostName {beta}\n    HostKeyAlias beta\n"
JUMP = BEHIND + "    ProxyJump bastion\n"

REACHED = {
    "a bastion": JUMP + DIRECT + BASE + KEY,
    "a bastion by ProxyCommand": (
        BEHIND + "    ProxyCommand ssh -F config -W %h:%p bastion\n" + DIRECT + BASE + KEY
    ),
    "the key only in the agent": JUMP + DIRECT + BASE + AGENT,
    "an encrypted key unlocked in the agent": (
        JUMP + DIRECT + BASE + AGENT + '    IdentityFile "{q}/locked"\n    IdentitiesOnly yes\n'
    ),
    "Include and Match": 'Include "{d}/included"\n' + BASE,
    "a master that is there already": (
        JUMP + DIRECT + BASE + KEY + "    ControlMaster auto\n    ControlPersist 5\n"
        "    ControlPath {short}/%n\n"
    ),
    "a terminal asked for": JUMP + DIRECT + BASE + KEY + "    RequestTTY force\n",
}
REFUSED = {
    "a host key that is not known": (
        JUMP + DIRECT + BASE.replace("/known", "/nobody") + KEY,
        "Host key verification failed",
    ),
    "an encrypted key": (
        JUMP + DIRECT + BASE + '    IdentityFile "{q}/locked"\n    IdentitiesOnly yes\n',
        "Permission denied (publickey)",
    ),
    "a bastion that is not there": (
        JUMP + "Host bastion\n    ProxyCommand false\n" + BASE + KEY,
        "Connection closed",
    ),
    "a word that ssh does not know": (
        JUMP + DIRECT + BASE + "    Colour red\n",
        "Bad configuration option",
    ),
    "no such file": (None, "Can't open user config file"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHosts]:
    folder = tmp_path_factory.mktemp("ssh")
    hosts = LocalHosts(folder / PLACE / "lab", print)
    # The hosts see their cache; a checkout below /tmp they do not see.
    write_bundle(folder / "cache" / BUNDLE)
    hosts.up(HostOptions("64m", cache_source=folder / "cache"))
    yield hosts
    hosts.down(force=True)


@pytest.fixture(scope="module")
def place(lab: LocalHosts) -> Iterator[Path]:
    """Keys, known hosts and an agent, in a directory whose name has to be quoted everywhere."""
    place = lab.state.directory.parent
    key = lab.state.path("id_ed25519").read_bytes()
    for name in ("key", "locked"):
        (place / name).write_bytes(key)
        (place / name).chmod(0o600)
    (place / "locked.pub").write_bytes(lab.state.path("id_ed25519.pub").read_bytes())
    lock = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(place / "locked")]
    subprocess.run(lock, check=True)
    (place / "known").write_bytes(lab.state.path("known_hosts").read_bytes())
    socket = place / "agent"
    with subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL
    ) as agent:
        wait_for(socket.exists, process=agent)
        add = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", str(place / "key")], env=add, check=True)
        yield place
        agent.terminate()


@pytest.fixture
def config(lab: LocalHosts, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a test's ssh_config goes; ssh runs beside it, without an agent of the user."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (place / "config").unlink(missing_ok=True)
    return place / "config"


def written(config: Path, text: str, lab: LocalHosts, short: Path) -> None:
    words = {
        "d": config.parent,
        "q": str(config.parent).replace("%", "%%"),
        "pid": lab.status().pid,
        "short": short,
        **HOSTS,
    }
    included = JUMP + DIRECT + "Match originalhost kvm1,bastion\n" + KEY
    (config.parent / "included").write_text(included.format(**words))
    config.write_text(text.format(**words))


def host(config: Path, sudo: bool = False) -> Host:
    there = HostConfig(
        name="kvm1",
        ssh="kvm1",
        address="",
        python="/usr/bin/python3",
        lib=f"/var/cache/vhdlab/{BUNDLE}",
        private_dir="/var/lib/vhdlab",
        cache_dir="/var/cache/vhdlab",
        sudo=sudo,
    )
    return Host(there, config)


@pytest.mark.parametrize("case", REACHED)
def test_a_host_that_ssh_reaches_is_reached(case, config, lab, tmp_path_factory) -> None:
    written(config, REACHED[case], lab, tmp_path_factory.mktemp("c"))
    ssh = ["ssh", "-F", "config", "-o", "BatchMode=yes", "-T", "kvm1", "hostname"]
    peer = subprocess.run(
        ssh, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert peer.stdout == "beta\n", peer.stderr
    with host(config) as reached:
        assert reached.read("/proc/sys/kernel/hostname", 64) == b"beta\n"


@pytest.mark.parametrize("case", REFUSED)
def test_a_host_out_of_reach_is_one_line_and_no_question(case, config, lab, tmp_path) -> None:
    text, words = REFUSED[case]
    if text is not None:
        written(config, text, lab, tmp_path)
    with pytest.raises(LabError) as refused:
        host(config)
    assert str(refused.value).startswith("host kvm1: no SSH connection to kvm1: ")
    assert str(refused.value).endswith("; try `ssh -F config kvm1 true`")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


RULES = {
    "without a password": ("operator ALL=(ALL) NOPASSWD: ALL", None),
    "with a password": ("operator ALL=(ALL) ALL", "sudo: a password is required"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_user_becomes_root_by_sudo_or_is_told_why_not(rule, config, lab, tmp_path) -> None:
    """beta gets a user with that rule, and an sshd that lets him in."""
    rule, refusal = RULES[rule]
    behind = JUMP.replace("{beta}", "127.0.0.1") + "    Port 2222\n    User operator\n"
    text = behind.replace("ProxyJump bastion", "ProxyJump root@beta")
    root = "Host beta\n    HostName {beta}\n    ProxyJump bastion\n"
    written(config, text + root + DIRECT + BASE + KEY, lab, tmp_path)
    with sudo_user(["ssh", "-F", "config", "beta"], rule):
        if refusal is None:
            with host(config, sudo=True) as reached:
                assert b"Uid:\t0\t" in reached.read("/proc/self/status", 4096)
        else:
            with pytest.raises(LabError, match=refusal):
                host(config, sudo=True)
