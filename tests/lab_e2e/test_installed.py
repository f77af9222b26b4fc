"""The wheel and the collection, installed in an empty directory, run a case without a checkout.

Takes about a minute: both are built, two hosts are started and provisioned, and a guest migrates.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HostOptions

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
INVENTORY = """\
all:
  hosts:
    localhost:
      ansible_connection: local
      ansible_python_interpreter: "{{ ansible_playbook_python }}"
  children:
    hypervisors:
      hosts:
        alpha: {migration_address: 198.18.0.11}
        beta: {migration_address: 198.18.0.12}
      vars:
        ansible_ssh_args: "-F {{ migration_ssh_config | relpath | quote }}"
        ansible_python_interpreter: /usr/bin/python3
        hypervisor_kvm_install: false
        guest_copy: false
  vars:
    local_hosts_enabled: true
    local_hosts_shared_size: 700m
    migration_ssh_config: .lab/ssh_config
    migration_storage: local
"""

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in an empty directory, as a user with a new home would; returns its output."""
    directory = tmp_path / "empty"
    directory.mkdir()
    foreign = ("PYTHON", "ANSIBLE_", "PYTEST_", "VHDLAB_")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(foreign)}
    environment.update(HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8")
    environment["XDG_CACHE_HOME"] = str(HostOptions().cache_source.parent)  # has the guest image

    def run(*words: str | Path, cwd: Path = directory) -> str:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "[WARNING]" not in done.stderr
        return done.stdout

    return run


@pytest.fixture
def python(run: Run, tmp_path: Path) -> Path:
    """Python of a virtual environment with the wheel; the packages that it needs are the tests'."""
    sources, dist, home = (tmp_path / name for name in ("sources", "dist", "venv"))
    sources.mkdir()
    names = run(
        "git",
        "ls-files",
        "-z",
        "vhdtool",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "setup.py",
        cwd=ROOT,
    )
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    run(*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", dist, sources)
    venv.create(home, symlinks=True)
    purelib = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (purelib / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = home / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    install = [*PIP, "--python", python, "install", "-q", "--no-index"]
    run(*install, "--no-deps", "--ignore-installed", wheel)
    run(*install, "vhdtool[lab]")  # fails where the extra names a package that is not there
    assert run(python, "-c", "import vhdtool; print(vhdtool.__file__)").startswith(str(purelib))
    return python


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[LocalHosts]:
    hosts = LocalHosts(tmp_path / "empty" / ".lab", print)
    yield hosts
    hosts.down(force=True)


def test_an_installed_collection_and_wheel_run_a_case(
    run: Run, python: Path, hosts: LocalHosts, tmp_path: Path
) -> None:
    galaxy = [python, "-m", "ansible", "galaxy", "collection"]
    run(*galaxy, "build", "--output-path", tmp_path / "dist", cwd=ROOT)
    (built,) = (tmp_path / "dist").glob("vhdtool-lab-*.tar.gz")
    run(*galaxy, "install", "--offline", built)
    (tmp_path / "empty" / "mine.yml").write_text(INVENTORY)
    playbook = [python, "-m", "ansible", "playbook", "-i", "mine.yml"]
    output = run(*playbook, "vhdtool.lab.lab", "-e", "migration_strategies=activate")
    assert "[1/1] activate on s1 consistent, as expected, " in output

    verdict = json.loads((tmp_path / "empty" / "runs" / "latest" / "verdict.json").read_text())
    assert [(c["case"], c["verdict"]) for c in verdict["strategies"]] == [
        ("activate-on-s1", "consistent")
    ]
    case = tmp_path / "empty" / "runs" / "latest" / "activate-on-s1"
    assert " passed" in (case / "testinfra-live.log").read_text()
    assert "-i mine.yml vhdtool.lab.lab" in (case / "reproduce.txt").read_text()

    documented = run(python, "-m", "ansible", "doc", "-t", "module", "vhdtool.lab.preflight")
    assert str(tmp_path / "home") in documented
    assert "changed: [localhost]" in output
    assert "changed: [localhost]" in run(*playbook, "vhdtool.lab.teardown")
    assert "changed: [localhost]" not in run(*playbook, "vhdtool.lab.teardown")
    assert not hosts.down(force=True), "teardown has ended the hosts"
