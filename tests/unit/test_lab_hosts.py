"""A host as the controller sees it: the real agent, behind an `ssh` that stays on this machine."""

import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host, HostConfig, RemoteError

ROOT = Path(__file__).resolve().parent.parent.parent
RUN_IT = 'for word; do :; done\nexec sh -c "$word"\n'


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of ssh, which runs the command; what stands in it can be changed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "ssh"
    script.write_text("#!/bin/sh\n" + RUN_IT)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return script


def host(lib: Path = ROOT) -> Host:
    there = HostConfig("kvm1", "kvm1", "", sys.executable, str(lib), "/nowhere", "/nowhere")
    return Host(there, None)


def test_calls_are_answered_and_a_refusal_names_the_host(ssh: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with host() as reached:
        assert reached.read(str(tmp_path / "file")) == b"content"
        with pytest.raises(RemoteError, match=r"^kvm1: no operation 'nonsense'"):
            reached.call("nonsense")


def test_a_greeting_of_the_login_shell_is_passed_by(ssh: Path) -> None:
    ssh.write_text("#!/bin/sh\necho Welcome\n" + RUN_IT)
    with host() as reached:
        assert reached.call("exists", paths=["/"]) == [True]


def test_the_agents_python_may_have_any_locale_of_the_user(
    ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    with host() as reached:
        assert reached.call("exists", paths=["/größe"]) == [False]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Permission denied (publickey).' >&2; exit 255", "no SSH connection to kvm1: Perm"),
        ("echo 'sudo: a password is required' >&2; exit 1", "the agent ended: sudo: a password"),
        ("exit 255", "no SSH connection to kvm1: no answer; try `ssh kvm1 true`"),
    ],
)
def test_a_host_that_is_not_reached_is_one_line(ssh: Path, script: str, words: str) -> None:
    ssh.write_text("#!/bin/sh\n" + script)
    with pytest.raises(LabError) as refused:
        host()
    assert str(refused.value).startswith(f"host kvm1: {words}")
    assert "\n" not in str(refused.value)


def test_a_missing_ssh_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="ssh cannot be started: No such file or directory"):
        host()


def test_a_full_disk_is_not_reported_as_a_lost_connection(ssh: Path, tmp_path: Path) -> None:
    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with socket.socket(socket.AF_UNIX) as console, host() as reached:
        console.bind(str(tmp_path / "console"))
        console.listen()
        waiting = reached.start("connect", path=str(tmp_path / "none"), patience=30)
        reached.connect(str(tmp_path / "console"), full)
        with console.accept()[0] as guest:
            guest.sendall(b"acked 1")
            with pytest.raises(LabError, match="cannot be recorded here: No space left on device"):
                reached.result(waiting, "connect")
