"""Tests that start real hosts (root): each in a state directory of its own, ended in every case."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HostOptions

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent

collect_ignore_glob = [] if os.geteuid() == 0 else ["test_*.py"]

Run = Callable[..., subprocess.CompletedProcess[str]]


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
