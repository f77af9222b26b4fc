"""The local hosts come up wherever the checkout is, and whatever environment a user has."""

import subprocess
import sys

import pytest

from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HostOptions

NAMES = ("my proj (1)", 'it\'s "quoted"', "100% ${HOME} %h", "größer", "-F", "a\\b $(x)")


@pytest.mark.parametrize("name", NAMES)
def test_a_state_directory_of_any_name_is_reached_by_ssh(name, tmp_path) -> None:
    lab = LocalHosts(tmp_path / name / "lab", print)
    try:
        lab.up(HostOptions("64m", cache_source=tmp_path / name / "cache"))
        ssh = ["ssh", "-F", str(lab.state.path("ssh_config")), "alpha", "hostname"]
        done = subprocess.run(ssh, capture_output=True, text=True, check=False)
        assert done.stdout == "alpha\n", done.stderr
    finally:
        lab.down(force=True)
    assert not lab.control.exists()


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_the_mask_of_the_user_does_not_matter(mask, lab, options, ssh) -> None:
    command = [sys.executable, "-m", "vhdtool.cli.main", "hosts", "up", "--shared-size", "64m"]
    command += ["--state", str(lab.state.directory), "--cache", str(options.cache_source)]
    subprocess.run(command, check=True, umask=mask)
    assert ssh("beta", "stat -c %a /run/sshd /srv/vhdlab").stdout.split() == ["755", "755"]
