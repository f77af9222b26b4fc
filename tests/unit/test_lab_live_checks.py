"""The checks of the hosts, run as the lab runs them, with this machine as the host."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_for
from vhdtool.lab.live_checks import run

CHECKS = [
    "no process is left",
    "no socket is left",
    "the private directory is private",
    "no lease is held",
]


@pytest.fixture
def described(tmp_path: Path) -> dict[str, Any]:
    """live.json of a case that is over and has left nothing."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (tmp_path / "image.vhd").write_bytes(b"image")
    (tmp_path / "image.vhd.lease").write_text('{"holder": null}\n' + "\0" * 600)
    host = {"ssh": "local", "sudo": False, "private_dir": str(private), "python": sys.executable}
    return {
        "phase": "after",
        "hypervisor": "kvm",
        "image": str(tmp_path / "image.vhd"),
        "lease": str(tmp_path / "image.vhd.lease"),
        "ssh_config": None,
        "hosts": {"here": host},
    }


def checked(described: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "live.json"
    path.write_text(json.dumps(described))
    command = [
        "--hosts=local://" if word.startswith("--hosts=") else word
        for word in run.command(described, path)
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_hosts_on_which_nothing_is_left_pass(described: dict[str, Any], tmp_path: Path) -> None:
    done = checked(described, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


def test_guests_of_others_on_a_host_do_not_count(described: dict[str, Any], tmp_path: Path) -> None:
    """A real QEMU, whose guest lies beside the lab's directory."""
    qemu = ["qemu-system-x86_64", "-M", "none", "-display", "none", "-S", "-nodefaults"]
    qemu += ["-qmp", f"unix:{tmp_path}/other.qmp,server=on,wait=off"]
    with subprocess.Popen(qemu, stdin=subprocess.DEVNULL) as other:
        try:
            wait_for((tmp_path / "other.qmp").exists, 20, process=other)
            done = checked(described, tmp_path)
        finally:
            other.kill()
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("domain", "left"), [("other", False), ("vhdlab-guest0", True)])
def test_only_a_running_domain_of_the_lab_is_left(
    domain: str, left: bool, described: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines = ["Name  ID  Mem VCPUs  State  Time(s)", "Domain-0  0  768  1  r-----  88.5"]
    lines += [f"{domain}  3  128  1  -b----  1.0", "vhdlab-guest1  4  128  1  ---s--  1.0"]
    xl = tmp_path / "xl"
    xl.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    xl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = checked({**described, "hypervisor": "xen"}, tmp_path)
    assert (done.returncode != 0) == left, done.stdout
    assert not left or run.failed_checks(done.stdout) == "not true that no guest is left"
    assert ("[3] == []" in done.stdout) == left


def test_each_leftover_on_a_host_fails_its_check(described: dict[str, Any], tmp_path: Path) -> None:
    private = Path(described["hosts"]["here"]["private_dir"])
    private.chmod(0o755)
    (tmp_path / "image.vhd.lease").write_text('{"holder": {"host": "here"}}\n')
    words = ["vhdtool.tapdisk", f"{private}/run"]
    with (
        socket.socket(socket.AF_UNIX) as left,
        subprocess.Popen(
            [sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE
        ) as process,
    ):
        left.bind(str(private / "left"))
        done = checked(described, tmp_path)
        process.communicate(b"\n")
    assert run.failed_checks(done.stdout) == "not true that " + ", ".join(CHECKS)


def test_checks_without_a_case_are_refused_in_one_line(tmp_path: Path) -> None:
    plugin = ["-p", "vhdtool.lab.live_checks.plugin", "--pyargs", "vhdtool.lab.live_checks"]
    command = [sys.executable, "-P", "-m", "pytest", *plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--case=FILE and --hosts=ssh://HOST,... say what to check" in done.stderr
