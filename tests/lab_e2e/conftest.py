"""Tests that start real hosts (root): each in a state directory of its own, ended in every case.

`lab` has local hosts that are not up yet. `machines` are hosts that are there already, as those of
a user are: `play` runs playbooks against them, with an inventory in which the lab makes no hosts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HOSTS, HostOptions

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent

collect_ignore_glob = [] if os.geteuid() == 0 else ["test_*.py"]

INVENTORY = """\
all:
  hosts:
    localhost:
      ansible_connection: local
      ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
  children:
    hypervisors:
      hosts:
        alpha: {{migration_address: {alpha}}}
        beta: {{migration_address: {beta}}}
      vars:
        ansible_ssh_args: "{{{{ '-F ' ~ (migration_ssh_config | relpath | quote) }}}}"
        ansible_python_interpreter: /usr/bin/python3
        hypervisor_kvm_install: false
  vars:
    migration_ssh_config: {ssh_config}
    tapdisk_bundle: {bundle}
"""

BASTION = """\
Host beta
    HostName {beta}
    ProxyJump alpha
Host *
    Include "{config}"
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHosts]:
    """Two hosts that are there already. They have the user's cache, with the guest image."""
    hosts = LocalHosts(tmp_path_factory.mktemp("machines") / "my lab (1)" / "lab", print)
    hosts.up(HostOptions("700m"))
    yield hosts
    hosts.down(force=True)


@pytest.fixture
def inventory(machines: LocalHosts, tmp_path: Path) -> Path:
    path = tmp_path / "hosts.yml"
    # Beside "my lab (1)": ssh cannot jump by a file whose name has a space in it.
    config = machines.state.directory.parent.parent / "ssh_config"
    config.write_text(BASTION.format(config=machines.state.path("ssh_config"), **HOSTS))
    bundle = machines.state.directory.parent / "vhdtool.zip"
    path.write_text(INVENTORY.format(ssh_config=config, bundle=bundle, **HOSTS))
    return path


@pytest.fixture
def play(inventory: Path, tmp_path: Path) -> Run:
    """Runs playbooks against the machines; keyword arguments become extra variables."""

    def run(
        *names: str, check: bool = False, words: tuple[str, ...] = (), **extra: object
    ) -> subprocess.CompletedProcess[str]:
        extra.setdefault("migration_run_dir", str(tmp_path / "run"))
        command = [str(BIN / "ansible-playbook"), "-i", str(inventory), "-e", json.dumps(extra)]
        command += ["--check"] if check else []
        command += words
        return subprocess.run(
            [*command, *(f"playbooks/{name}.yml" for name in names)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return run


def failures(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that say what failed; there must be nothing of Python in the output."""
    assert "Traceback" not in done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    marks = (": FAILED: ", "vhdtool: ", "lab: ")
    return [line for line in lines if any(mark in line for mark in marks)]


@pytest.fixture
def said() -> list[str]:
    """The lines that the hosts' control has said."""
    return []


@pytest.fixture
def lab(tmp_path: Path, said: list[str]) -> Iterator[LocalHosts]:
    """Local hosts that are not up yet, in a directory of their own."""
    hosts = LocalHosts(tmp_path / "lab", said.append)
    yield hosts
    hosts.down(force=True)


@pytest.fixture
def options(tmp_path: Path) -> HostOptions:
    return HostOptions("64m", cache_source=tmp_path / "cache")


@pytest.fixture
def ssh(lab: LocalHosts) -> Run:
    """Runs a command on a host of `lab`, through ssh_config alone."""

    def run(host: str, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        config = str(lab.state.path("ssh_config"))
        return subprocess.run(
            ["ssh", "-F", config, *more, host, command],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run
