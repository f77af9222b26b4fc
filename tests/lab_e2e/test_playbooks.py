"""The playbooks as a user calls them: what works, and one clear line for what does not.

The hosts of most tests were made beforehand, as machines would be: the inventory here names two
sshd hosts and does not have the role local_hosts make them. beta is reached through alpha.
"""

import json
import re
import subprocess
import tarfile

import pytest

from tests.lab_e2e.conftest import ROOT, failures
from tests.support.sudo_user import PYTHON, sudo_user
from tests.support.waiting import wait_for
from vhdtool.oracle.run import judge_run
from vhdtool.report.lifecycle import UNFINISHED, begin

USER = """\
Host kvm2
    HostName 127.0.0.1
    HostKeyAlias beta
    Port 2222
    ProxyJump beta
"""

ORDER = "D.attach D.open | S.deactivate D.pause D.unpause | S.detach"


def test_hosts_made_beforehand_are_provisioned_once_and_migrate(play, tmp_path) -> None:
    """Takes half a minute: four provisionings and a migration, through a bastion."""
    foresight = play("provision", check=True)
    assert foresight.returncode == 0, foresight.stdout + foresight.stderr
    first = play("provision")
    assert first.returncode == 0, first.stdout + first.stderr
    for run in (foresight, first):
        assert "alpha: changed: tapdisk : Copy the package" in run.stdout
    second = play("provision")
    assert second.returncode == 0, second.stdout
    assert [line for line in second.stdout.splitlines() if " changed=0 " in line][1:], second.stdout
    assert "changed:" not in second.stdout, second.stdout
    dry = play("provision", check=True)
    assert dry.returncode == 0, dry.stdout + dry.stderr

    migrated = play("migrate", "verify", "report", migration_strategies="activate")
    assert migrated.returncode == 0, migrated.stdout + migrated.stderr
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["as_expected"] is True
    assert [(c["name"], c["verdict"]) for c in verdict["strategies"]] == [
        ("activate", "consistent")
    ]
    assert (tmp_path / "run" / "junit.xml").exists()
    assert (tmp_path / "run" / "report.html").exists()
    again = (tmp_path / "run" / "activate-on-s1" / "reproduce.txt").read_text()
    assert again.startswith(".venv/bin/ansible-playbook -i ")
    assert "/hosts.yml vhdtool.lab.lab -e migration_strategies=activate -e" in again


def test_a_case_runs_with_a_sudo_user_and_another_python(
    play, machines, inventory, tmp_path
) -> None:
    """gamma is beta, reached through two bastions; the runner connects as Ansible does.

    The case has an order of its own, whose destination opens early and reads all again.
    """
    config = machines.state.directory.parent.parent / "ssh_config"
    config.write_text(USER + config.read_text())
    kvm2 = f"gamma: {{ansible_become: true, ansible_python_interpreter: {PYTHON}, "
    kvm2 += "ansible_host: kvm2, ansible_user: operator, "
    inventory.write_text(inventory.read_text().replace("beta: {", kvm2))
    with sudo_user(["ssh", "-F", str(config), "beta"], "operator ALL=(ALL) NOPASSWD: ALL"):
        order = {"migration_steps": ORDER, "migration_live_tests": False}
        done = play("provision", "migrate", **order)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^\d\d:\d\d:\d\d \[1/1\] custom on s1 consistent, as expected,", done.stdout, re.M
    )
    again = (tmp_path / "run" / "custom-on-s1" / "reproduce.txt").read_text()
    assert f"""-e '{{"migration_steps": "{ORDER}"}}' -e migration_expect=consistent""" in again
    assert again.endswith(" -e migration_live_tests=false\n")
    hosts = json.loads((tmp_path / "run" / "config.json").read_text())["hosts"]
    assert [(host["name"], host["python"], host["sudo"]) for host in hosts] == [
        ("alpha", "/usr/bin/python3", False),
        ("gamma", PYTHON, True),
    ]
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert [case["verdict"] for case in verdict["strategies"]] == ["consistent"]


def test_a_host_where_tasks_do_not_run_as_root_is_refused(play, machines, inventory) -> None:
    config = machines.state.directory.parent.parent / "ssh_config"
    config.write_text(USER + config.read_text())
    inventory.write_text(
        inventory.read_text().replace("beta: {", "kvm2: {ansible_user: operator, ")
    )
    with sudo_user(["ssh", "-F", str(config), "beta"], "operator ALL=(ALL) NOPASSWD: ALL"):
        done = [play("provision"), play("migrate")]
    told = "kvm2: FAILED: tasks run as user 4321 and not as root; set ansible_become: true"
    assert [failures(one) for one in done] == [[told], [told]]


def test_an_interrupted_provisioning_is_completed_by_the_next(play, machines, tmp_path) -> None:
    assert play("provision").returncode == 0
    config = str(machines.state.path("ssh_config"))
    break_it = "rm -rf /var/lib/vhdlab/lib-*"
    subprocess.run(["ssh", "-F", config, "alpha", break_it], check=True)
    again = play("provision")
    assert again.returncode == 0
    assert "alpha: changed: tapdisk : Unpack and compile it" in again.stdout
    assert "beta: changed" not in again.stdout


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"migration_strategies": "activte"}, "'activte' does not exist; did you mean activate? "),
        ({"migration_steps": "D.attach | D.activate |"}, "S.deactivate is there 0 times"),
        ({"migration_image_size": "-5"}, "migration_image_size: -5 is not a size"),
        ({"migration_block_size": "big"}, "migration_block_size: big is not a size"),
        ({"migration_seed": -1}, "migration_seed: -1 is too small"),
        ({"migration_seed": 1 << 64}, "migration_seed: 18446744073709551616 is too large"),
        (
            {"migration_strategies": "hold,hold"},
            "migration_strategies: hold,hold names hold twice",
        ),
        ({"migration_load_pace_us": 1}, "migration_load_pace_us: 1 is too small"),
        ({"migration_seed": "seven"}, "cannot be converted to an int"),
        ({"migration_repeats": 0}, "migration_repeats: 0 is too small"),
        ({"migration_guard": "maybe"}, "must be one of: default, on, off"),
        ({"migration_hypervisor": "vmware"}, "must be one of: kvm"),
        ({"migration_load_profile": "none"}, "must be one of: paced"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(play, extra, words) -> None:
    done = play("provision", **extra)
    assert done.returncode != 0
    (line,) = failures(done)
    assert words in line


@pytest.mark.parametrize(
    ("names", "words", "told"),
    [
        (("lab",), ("--limit", "alpha"), "--limit alpha leaves out beta, localhost; a run needs"),
        (("lab",), ("--limit", "localhost"), "--limit localhost leaves out alpha, beta; a run"),
        (("lab",), ("--tags", "migrat"), "--tags migrat: there are provision, migrate, report"),
        (("lab",), ("--skip-tags", "provision,migrate,report,verify"), "leave nothing to be done"),
        (("migrate",), ("--tags", "verify"), "the tags leave nothing to be done; this playbook"),
        (("verify",), ("--tags", "migrate"), "the tags leave nothing to be done; this playbook"),
        (("report",), ("--tags", "all-of-it"), "--tags all-of-it: there are provision, migrate"),
    ],
)
def test_a_run_that_would_do_nothing_is_refused_in_one_line(
    play, tmp_path, names, words, told
) -> None:
    done = play(*names, words=words)
    assert done.returncode != 0
    (line,) = failures(done)
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_playbook_called_verify_fails_on_a_bad_verdict(play, tmp_path) -> None:
    """Judged twice alike, but not as expected; and a run that has only begun."""
    with tarfile.open(ROOT / "tests/records/reopen-on.tar.xz") as archive:
        archive.extractall(tmp_path / "run")
        case = tmp_path / "run" / archive.getnames()[0] / "case.json"
    case.write_text(case.read_text().replace('"consistent"', '"corrupt"'))
    (tmp_path / "run" / "verdict.json").write_text(json.dumps(judge_run(tmp_path / "run")))
    shown = play("report", words=("--limit", "alpha"))
    assert shown.returncode == 0, "it says what was, and does not judge"
    assert "1 of 1 cases did NOT end as expected" in shown.stdout
    done = play("verify", words=("--tags", "verify"))
    (line,) = failures(done)
    assert "not every verdict is the expected one" in line
    begin(tmp_path / "other", ["activate-on-s1"])
    done = play("verify", migration_run_dir=str(tmp_path / "other"))
    (line,) = failures(done)
    assert UNFINISHED in line


def test_hosts_that_cannot_be_reached_are_named(play, machines, tmp_path) -> None:
    done = play("migrate", ansible_ssh_args="-F /dev/null -o ProxyCommand=false")
    assert done.returncode != 0
    assert {line.partition(":")[0] for line in failures(done)} == {"alpha", "beta"}
    assert all("unreachable" in line for line in failures(done))
    # Before the first case there is a verdict all the same.
    error = json.loads((tmp_path / "run" / "verdict.json").read_text())["error"]
    assert error.startswith(("alpha: unreachable: ", "beta: unreachable: "))
    assert '<testcase name="run"' in (tmp_path / "run" / "junit.xml").read_text()


def test_no_space_on_the_shared_directory_is_said_before_the_run(play) -> None:
    done = play("migrate", migration_image_size="4g")
    assert done.returncode != 0
    assert all("/srv/vhdlab:" in line and "MiB free" in line for line in failures(done))
    assert failures(done)


def test_a_migration_port_in_use_is_said_before_the_run(play, machines) -> None:
    config = str(machines.state.path("ssh_config"))
    ssh = ["ssh", "-F", config, "-o", "ControlPath=none", "beta"]
    with subprocess.Popen([*ssh, "exec nc -l 198.18.0.12 49777"], stdin=subprocess.PIPE) as other:
        until = ["ssh", "-F", config, "beta", "ss -Hltn sport = :49777 | grep -q LISTEN"]
        wait_for(lambda: subprocess.run(until, check=False).returncode == 0, 20, process=other)
        done = play("migrate", migration_port=49777)
        other.kill()
    assert done.returncode != 0
    (line,) = failures(done)
    assert line.startswith("beta: FAILED: the migration port 49777 is in use")


def test_two_machines_of_one_host_name_are_refused(play, machines) -> None:
    """alpha gets beta's name, and another boot id in place of another kernel."""
    config = str(machines.state.path("ssh_config"))
    boot_id = "/proc/sys/kernel/random/boot_id"
    ssh = ["ssh", "-F", config, "alpha"]
    change = f"hostname beta; echo another >/run/boot_id; mount --bind /run/boot_id {boot_id}"
    subprocess.run([*ssh, change], check=True)
    try:
        done = play("migrate")
    finally:
        subprocess.run([*ssh, f"hostname alpha; umount {boot_id}"], check=True)
    assert done.returncode != 0
    lines = failures(done)
    assert {line.partition(":")[0] for line in lines} == {"alpha", "beta"}
    assert all(
        "another machine of the inventory has this host's name, beta" in line for line in lines
    )


def test_a_directory_that_is_not_shared_is_found_out(play) -> None:
    done = play("provision", shared_storage_dir="/tmp")
    assert done.returncode != 0
    assert any("/tmp is not shared" in line for line in failures(done))


def test_an_inventory_without_two_hosts_is_refused(play, inventory) -> None:
    text = inventory.read_text()
    inventory.write_text("\n".join(line for line in text.splitlines() if "beta:" not in line))
    done = play("provision")
    assert done.returncode != 0
    (line,) = failures(done)
    assert "needs exactly two" in line
