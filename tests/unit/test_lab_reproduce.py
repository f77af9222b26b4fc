"""The line that repeats a case: typed again, it asks for the same case at the same place."""

import os
import shlex
import subprocess
from pathlib import Path

from vhdtool.lab.options import RunOptions
from vhdtool.lab.reproduce import make_command, playbook_command

ORDER = "D.attach | S.deactivate D.activate | S.detach"


def test_make_gets_each_option_that_differs() -> None:
    asked = RunOptions(strategies=("activate",), seed=7, guard="on", image="qcow2")
    assert make_command(asked, {}) == "make lab STRATEGY=activate SEED=7 GUARD=on IMAGE=qcow2"
    given = {"local_hosts_shared_source": "/mnt/a b", "local_hosts_state_dir": "/tmp/lab"}
    assert make_command(asked, given).endswith(" IMAGE=qcow2 SHARED='/mnt/a b'")


def test_make_reads_back_what_was_quoted(tmp_path: Path) -> None:
    asked = RunOptions(steps=ORDER, expect="refused")
    line = make_command(asked, {"local_hosts_shared_source": "/mnt/it's $HOME"})
    (tmp_path / "Makefile").write_text("lab:\n\t@env\n")
    done = subprocess.run(
        ["make", "-s", "-C", str(tmp_path), *shlex.split(line)[1:]],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(one.split("=", 1) for one in done.stdout.splitlines() if "=" in one)
    assert seen["SHARED"] == "/mnt/it's $HOME"
    assert RunOptions.of_make(seen) == asked


def test_the_playbook_gets_its_inventories_and_variables() -> None:
    asked = RunOptions(strategies=("activate",), block_bytes=1 << 20, accelerator="kvm")
    given = {
        "migration_strategies": "activate,overlap",
        "migration_run_dir": "/elsewhere",
        "shared_storage_dir": "/srv/a b",
        "migration_live_tests": False,
    }
    program = os.path.relpath(".venv/bin/ansible-playbook")
    assert playbook_command(asked, ["inventory/my lab", "h1,h2,"], given) == (
        f"{program} -i 'inventory/my lab' -i h1,h2, vhdtool.lab.lab "
        "-e migration_strategies=activate -e migration_seed=1 -e migration_guard=default "
        "-e migration_block_size=1048576 -e migration_accelerator=kvm "
        """-e '{"shared_storage_dir": "/srv/a b"}' -e migration_live_tests=false"""
    )


def test_the_line_that_repeats_a_case_removes_no_runs() -> None:
    given = {"migration_keep_runs": 2, "migration_pack": True, "migration_soak": True}
    line = playbook_command(RunOptions(), ["mine"], given)
    assert not [name for name in given if name in line]


def test_an_order_is_one_variable_of_the_playbook() -> None:
    asked = RunOptions(steps=ORDER, seed=3, guard="on")
    words = shlex.split(playbook_command(asked, ["mine"], {}))
    assert '{"migration_steps": "' + ORDER + '"}' in words
    assert not [word for word in words if "strategies" in word]
