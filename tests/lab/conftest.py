"""The hosts of a case that is live or just over, as `VHDLAB_LIVE` names them.

The lab's runner starts these tests itself: `-m live` between RESUME and the source's close,
`-m after` when the case is over. They reach the hosts by SSH alone.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host


def pytest_configure(config: pytest.Config) -> None:
    if "VHDLAB_LIVE" not in os.environ:
        raise pytest.UsageError("VHDLAB_LIVE names no case: the lab's runner starts these tests")


@pytest.fixture(scope="session")
def case() -> dict[str, Any]:
    """live.json: what the runner says there is on the hosts now."""
    found = json.loads(Path(os.environ["VHDLAB_LIVE"]).read_text())
    assert isinstance(found, dict)
    return found


def connect(case: dict[str, Any], name: str) -> Host:
    told = case["hosts"][name]
    return testinfra.get_host(
        f"ssh://{told['ssh']}",
        ssh_config=case["ssh_config"],
        controlpersist=0,
        sudo=told["sudo"],
    )


@pytest.fixture(scope="session")
def hosts(case: dict[str, Any]) -> dict[str, Host]:
    return {name: connect(case, name) for name in case["hosts"]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `name` runs once for each host."""
    if "name" in metafunc.fixturenames:
        names = json.loads(Path(os.environ["VHDLAB_LIVE"]).read_text())["hosts"]
        metafunc.parametrize("name", list(names))


@pytest.fixture
def host(hosts: dict[str, Host], name: str) -> Host:
    return hosts[name]


@pytest.fixture
def told(case: dict[str, Any], name: str) -> dict[str, Any]:
    """What live.json says about this host."""
    entry = case["hosts"][name]
    assert isinstance(entry, dict)
    return entry


def pids(host: Host, program: str, told: dict[str, Any]) -> list[int]:
    """The lab's processes: a real host may have guests of its own, so a socket tells whose it is.

    Command lines are read as files: a `pgrep` would find the shell that carries its pattern.
    """
    code = (
        "import pathlib, sys\n"
        "for file in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    try: words = file.read_bytes().split(b'\\0')\n"
        "    except OSError: continue\n"
        "    program, folder = (word.encode() for word in sys.argv[1:])\n"
        "    if b'-c' not in words and any(program in w for w in words)"
        " and any(folder in w for w in words): print(file.parent.name)\n"
    )
    found = host.check_output("python3 -c %s %s %s", code, program, told["private_dir"] + "/run")
    return sorted(int(pid) for pid in found.split())


@pytest.fixture
def lease_holder(case: dict[str, Any], hosts: dict[str, Host]) -> str | None:
    """The host that the epoch record on the shared storage names, read through SSH."""
    host = next(iter(hosts.values()))
    text = host.check_output("head -c 512 %s", case["lease"]).rstrip("\0 \n")
    holder = json.loads(text)["holder"]
    return None if holder is None else str(holder["host"])
