"""The local hosts: what they are, that they are reused, and that nothing of them is ever left."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.footprint import networks_of, remains
from tests.support.waiting import wait_for
from vhdtool.errors import LabError, UsageError
from vhdtool.lab.localhosts import processes as procs
from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.lab.localhosts.options import HostOptions
from vhdtool.lab.localhosts.processes import Process

SEED = 20260101


def test_both_hosts_are_up_and_are_hosts_of_their_own(lab, options, ssh) -> None:
    assert lab.up(options) is True
    look = "hostname; readlink /proc/self/ns/net; stat -c %a /var/lib/vhdlab; echo $$ >&2"
    alpha, beta = (ssh(name, look).stdout.split() for name in ("alpha", "beta"))
    assert alpha[0] == "alpha"
    assert beta[0] == "beta"
    assert len({alpha[1], beta[1], os.readlink("/proc/self/ns/net")}) == 3
    assert alpha[2] == beta[2] == "700"


def test_one_directory_is_shared_and_one_is_private(lab, options, ssh) -> None:
    lab.up(options)
    ssh("alpha", "echo one > /srv/vhdlab/f; echo two > /var/lib/vhdlab/f; echo x > /root/f")
    assert (
        ssh("beta", "cat /srv/vhdlab/f; ls /var/lib/vhdlab /root /run/vhdlab 2>&1").stdout[:4]
        == "one\n"
    )
    assert ssh("beta", "ls /var/lib/vhdlab /root").stdout.split() == ["/root:", "/var/lib/vhdlab:"]
    full = ssh("beta", "head -c 100m /dev/zero > /srv/vhdlab/big")
    assert "No space left" in full.stderr


def test_a_real_directory_can_be_shared_and_keeps_its_files(lab, tmp_path, ssh) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    lab.up(HostOptions(shared_source=shared, cache_source=tmp_path / "cache"))
    ssh("alpha", "echo one > /srv/vhdlab/f; echo two > /var/cache/vhdlab/g")
    assert ssh("beta", "cat /srv/vhdlab/f").stdout == "one\n"
    lab.down()
    assert (shared / "f").read_text() == "one\n"
    assert (tmp_path / "cache" / "g").read_text() == "two\n"


def test_hosts_reach_each_other_and_nothing_else(lab, options, ssh) -> None:
    lab.up(options)
    assert ssh("alpha", "nc -z -w 2 beta 22").returncode == 0
    assert ssh("alpha", "ip route").stdout.split()[:1] == ["198.18.0.0/24"]
    assert "default" not in ssh("alpha", "ip route").stdout


def test_a_key_is_the_only_way_in(lab, options, ssh) -> None:
    lab.up(options)
    passwords = ("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password")
    refused = ssh("alpha", "true", "-o", "ControlPath=none", *passwords)
    assert refused.returncode == 255
    assert "publickey" in refused.stderr


def test_running_hosts_are_reused_unless_options_differ(lab, options, said, tmp_path) -> None:
    assert lab.up(options) is True
    pid = lab.status().pid
    assert lab.up(options) is False
    assert lab.status().pid == pid
    assert lab.up(HostOptions("65m", cache_source=tmp_path / "cache")) is True
    assert lab.status().pid != pid
    assert said == ["other options than those of the running hosts: making them anew"]


def test_down_leaves_nothing(lab, options, ssh) -> None:
    lab.up(options)
    ssh("alpha", "sleep 1000 >/dev/null 2>&1 & disown")
    networks = networks_of(lab)
    assert len(networks) == 3
    assert remains(lab, networks)
    assert lab.down() is True
    assert remains(lab, networks) == []
    assert lab.down() is False


@pytest.mark.parametrize("victim", ["outer", "supervisor", "a host", "its sshd", "the ssh master"])
def test_after_kill_9_of_anything_down_leaves_nothing(lab, options, ssh, victim) -> None:
    lab.up(options)
    assert ssh("alpha", "true").returncode == 0
    networks = networks_of(lab)
    target = victim_of(lab, victim)
    target.kill(signal.SIGKILL)
    lab.down()
    assert remains(lab, networks) == []


def victim_of(lab: LocalHosts, name: str) -> Process:
    outer, _ = lab.state.supervisor()
    assert outer is not None
    inside = procs.descendants(outer.pid)
    if name == "outer":
        return outer
    if name == "supervisor":
        return inside[0]
    if name == "a host":
        return inside[3]
    if name == "its sshd":
        return next(p for p in inside if "sshd" in procs.command_line(p.pid))
    pids = [pid for pid in procs.pids() if f"{lab.control}/alpha" in procs.command_line(pid)]
    master = Process.of(pids[0])
    assert master is not None
    return master


@pytest.mark.parametrize("victim", ["outer", "supervisor", "a host"])
def test_a_stale_lab_is_recognised_said_and_replaced(lab, options, ssh, said, victim) -> None:
    lab.up(options)
    networks = networks_of(lab)
    victim_of(lab, victim).kill()
    wait_for(lambda: lab.status().state == "stale")
    assert lab.up(options) is True
    assert len(said) == 1
    assert said[0].startswith("found a stale lab of an earlier run")
    assert ssh("beta", "hostname").stdout == "beta\n"
    lab.down()
    assert remains(lab, networks) == []


def test_down_ends_all_that_a_killed_up_left(lab, options) -> None:
    """Kills the starting process and everything of its group, at moments drawn from a seed."""
    dice = random.Random(SEED)
    command = [sys.executable, "-m", "vhdtool.cli.main", "hosts", "up", "--shared-size", "64m"]
    command += ["--state", str(lab.state.directory), "--cache", str(options.cache_source)]
    for _ in range(12):
        delay = dice.uniform(0.0, 0.35)
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(delay)  # The moment is what is drawn.
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        networks = networks_of(lab)
        lab.down()
        assert remains(lab, networks) == [], f"seed {SEED}, killed after {delay:.3f} s"
    assert lab.up(options) is True


def test_two_checkouts_have_labs_at_the_same_time(lab, options, tmp_path, said) -> None:
    other = LocalHosts(tmp_path / "other", said.append)
    try:
        lab.up(options)
        other.up(options)
        other.down()
        assert lab.status().state == "running"
    finally:
        other.down()


def test_a_recycled_pid_is_not_killed(lab, options) -> None:
    lab.up(options)
    outer, record = lab.state.supervisor()
    assert outer is not None
    lab.down()
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        lab.state.write("supervisor.json", {**record, "pid": stranger.pid})
        assert lab.status().state == "stale"
        lab.down()
        assert stranger.poll() is None
        stranger.kill()


def test_a_second_run_is_refused_and_a_dead_one_is_forgotten(lab, options) -> None:
    with subprocess.Popen(["sleep", "1000"]) as first:
        holder = Process.of(first.pid)
        assert holder is not None
        lab.up(options, holder, "one")
        with pytest.raises(LabError, match=f"another run .pid {first.pid}.* wait for its end"):
            lab.up(options, Process.current(), "two")
        with pytest.raises(LabError, match="is using the hosts"):
            lab.down(Process.current())
        first.kill()
    assert lab.up(options, Process.current(), "two") is False


def test_what_a_killed_run_left_on_the_controller_is_ended(lab, options) -> None:
    mark = {**os.environ, "VHDLAB_RUN": "killed-run"}
    with subprocess.Popen(["sleep", "1000"]) as dead:
        holder = Process.of(dead.pid)
        assert holder is not None
        lab.up(options, holder, "killed-run")
        dead.kill()
    with (
        subprocess.Popen(["sleep", "1000"], env=mark) as left,
        subprocess.Popen(["sleep", "1000"]) as stranger,
    ):
        wait_for(lambda: procs.marked("VHDLAB_RUN=killed-run"))
        lab.down()
        assert left.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()


def test_a_bridge_of_the_same_name_is_left_alone(lab, options, ssh) -> None:
    """In a network namespace of our own, which stands for the machine."""
    script = (
        'ip link add vhdlab0 type bridge && ip link add vh-alpha type bridge && "$@" && ip -br link'
    )
    words = [sys.executable, "-m", "vhdtool.cli.main", "hosts", "up", "--shared-size", "64m"]
    words += ["--state", str(lab.state.directory), "--cache", str(options.cache_source)]
    command = ["unshare", "--net", "sh", "-c", script, "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vhdlab0" in done.stdout
    assert ssh("alpha", "hostname").stdout == "alpha\n"


@pytest.mark.parametrize("size", ["-5", "0", "many", "12x"])
def test_a_size_that_makes_no_sense_is_refused(size) -> None:
    with pytest.raises(UsageError, match="give a positive number"):
        HostOptions(size)


def test_a_shared_directory_that_does_not_exist_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="is no directory; name one"):
        HostOptions(shared_source=tmp_path / "none")


def test_a_normal_user_is_told_what_is_missing(lab, options, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="need root"):
        lab.up(options)
