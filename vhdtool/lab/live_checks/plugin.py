"""pytest plugin for checks of a case's hosts; `--hosts` and `--ssh-config` are testinfra's.

    pytest -p vhdtool.lab.live_checks.plugin --pyargs vhdtool.lab.live_checks -m live \\
        --hosts=ssh://alpha,ssh://beta --ssh-config=FILE --case=CASE/live.json

`-m live` is for the time between RESUME and the source's close, `-m after` for the end of a case.
`live.json` is written by the runner: which processes and sockets each host is expected to have.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

Description = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vhdtool")
    group.addoption("--case", metavar="FILE", help="live.json of the case to check")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "live: checks the hosts while a case is live")
    config.addinivalue_line("markers", "after: checks the hosts after a case")
    if not config.option.case or not config.option.hosts:
        raise pytest.UsageError("--case=FILE and --hosts=ssh://HOST,... say what to check")


@pytest.fixture(scope="session")
def case(pytestconfig: pytest.Config) -> Description:
    """live.json: what the runner expects on the hosts now."""
    found = json.loads(Path(pytestconfig.option.case).read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def hosts(pytestconfig: pytest.Config) -> list[Host]:
    """All hosts of `--hosts`, for checks that compare them; `host` is each in turn."""
    option = pytestconfig.option
    found = testinfra.get_hosts(
        option.hosts.split(","), ssh_config=option.ssh_config, sudo=option.sudo
    )
    return list(found)


@pytest.fixture
def expected(case: Description, host: Host) -> Description:
    """What live.json says of this host."""
    name = host.backend.get_hostname()
    (entry,) = [
        entry for entry in case["hosts"].values() if entry["ssh"].rpartition("@")[2] == name
    ]
    assert isinstance(entry, dict)
    return entry


@pytest.fixture
def lease_holder(case: Description, hosts: list[Host]) -> str | None:
    """The host that the epoch record on the shared storage names."""
    text = hosts[0].check_output("head -c 512 %s", case["lease"]).rstrip("\0 \n")
    holder = json.loads(text)["holder"]
    return None if holder is None else str(holder["host"])


def guests(host: Host, case: Description, expected: Description) -> list[int]:
    """The lab's guests that run on the host: PIDs of QEMU, or numbers of Xen's domains."""
    if case["hypervisor"] != "xen":
        return pids(host, expected, "qemu-system-")
    lines = [line.rsplit(maxsplit=5) for line in host.check_output("xl list").splitlines()[1:]]
    return sorted(
        int(number)
        for name, number, _, _, state, _ in lines
        # Between RESUME and its end, the source's domain is stopped or gone.
        if name.startswith("vhdlab-") and not set(state) & set("pscd")
    )


def pids(host: Host, expected: Description, program: str) -> list[int]:
    """PIDs of the lab's processes; arguments name its directory, other guests' do not."""
    directory = expected["private_dir"] + "/run"
    found = host.process.filter()
    return sorted(one.pid for one in found if program in one.args and directory in one.args)
