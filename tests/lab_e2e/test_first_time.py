"""Two servers for the first time: an export that does not fit yet, check mode, and teardown."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab_e2e.conftest import Run, failures
from tests.support.nfs_host import NfsHost
from vhdtool.lab.localhosts.control import LocalHosts

EXPORT = {
    "shared_storage_nfs": "server:/export",
    "shared_storage_dir": "/run/export",
    "shared_storage_install": False,
    "tapdisk_private_dir": "/run/private",
}
UNITS = ["run-export.mount", "vhdlab-mount.service"]


@pytest.fixture
def servers(machines: LocalHosts) -> Iterator[list[NfsHost]]:
    config = str(machines.state.path("ssh_config"))
    with ExitStack() as stack:
        names = ("alpha", "beta")
        yield [stack.enter_context(NfsHost(["ssh", "-F", config, name])) for name in names]


def test_an_export_with_root_squash_leaves_no_unit(play: Run, servers: list[NfsHost]) -> None:
    for server in servers:
        server.set_export("squashed")
    done = play("provision", **EXPORT)
    assert done.returncode != 0
    told = "server:/export: root cannot write there: Operation not permitted; export it with"
    for name, line in zip(("alpha", "beta"), sorted(failures(done)), strict=True):
        assert line == f"{name}: FAILED: {told} no_root_squash, then exportfs -ra"
    for server in servers:
        assert server.units() == []
        assert server.run("ls -d /tmp/vhdlab-export-* 2>/dev/null || true") == ""


def test_fresh_servers_are_foreseen_provisioned_and_torn_down(
    play: Run, servers: list[NfsHost], tmp_path: Path
) -> None:
    """Takes 20 s and more: check mode, two provisionings and two teardowns of two hosts."""
    for server in servers:
        server.set_export("good")
    foreseen = play("lab", check=True, words=("--diff",), **EXPORT)
    assert foreseen.returncode == 0, foreseen.stdout + foreseen.stderr
    assert foreseen.stderr == ""
    assert "beta: changed: shared_storage : Write the mount unit" in foreseen.stdout
    assert "+What=server:/export\n" in foreseen.stdout
    assert "alpha: no run can start yet: /run/export: cannot be written" in foreseen.stdout
    assert [server.units() for server in servers] == [[], []]
    assert not (tmp_path / "run").exists()

    first = play("provision", **EXPORT)
    assert first.returncode == 0, first.stdout + first.stderr
    assert [server.units() for server in servers] == [UNITS, UNITS]
    second = play("provision", **EXPORT)
    assert "changed:" not in second.stdout, second.stdout

    servers[0].run("touch /run/export/left.vhd")
    left = servers[0].run("PYTHONPATH=/run/private/lib sleep 600 >/dev/null 2>&1 & echo $!").strip()
    removed = play("teardown", **EXPORT)
    assert removed.returncode == 0, removed.stdout + removed.stderr
    assert "alpha: changed: tapdisk : End what is left of runs" in removed.stdout
    assert "beta: changed: tapdisk : End what is left of runs" not in removed.stdout
    assert servers[0].run(f"kill -0 {left} 2>&1 || true").endswith("No such process\n")
    assert "alpha: stays: packages; /var/cache/vhdlab (guest image" in removed.stdout
    assert "/run/export/left.vhd" in removed.stdout
    for server in servers:
        assert server.units() == []
        assert server.run("ls -d /run/export /run/private 2>/dev/null || true") == ""
    again = play("teardown", **EXPORT)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed:" not in again.stdout, again.stdout
    assert first.stderr + second.stderr + removed.stderr + again.stderr == ""
    servers[0].run("rm /srv/vhdlab/left.vhd")
