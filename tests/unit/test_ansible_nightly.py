"""The role nightly: units written once, left alone by the second run, and removed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}


def play(*words: str, entry: str = "main", **extra: Any) -> subprocess.CompletedProcess[str]:
    program = [str(BIN / "ansible-playbook"), "-i", "localhost,", "-c", "local"]
    role = {"name": "vhdtool.lab.nightly", "tasks_from": entry}
    tasks = [{"ansible.builtin.import_role": role}]
    plays = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
    playbook = Path(str(extra["nightly_unit_dir"])).parent / "play.yml"
    playbook.write_text(json.dumps(plays))
    extra |= {"nightly_enabled": False, "ansible_python_interpreter": sys.executable}
    return subprocess.run(
        [*program, "-e", json.dumps(extra), *words, str(playbook)],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    (tmp_path / "units").mkdir()
    return tmp_path / "units"


def test_a_night_packs_its_record_and_keeps_30_runs(units: Path) -> None:
    """Takes some seconds: it runs Ansible three times."""
    more: dict[str, Any] = {
        "nightly_directory": str(ROOT),
        "nightly_inventory": "inventory/local",
        "nightly_variables": {"migration_repeats": 3},
    }
    first = play(nightly_unit_dir=str(units), **more)
    assert first.returncode == 0, first.stdout + first.stderr
    variables = json.loads((units / "vhdtool-nightly.json").read_text())
    assert variables == {
        "migration_pack": True,
        "migration_keep_runs": 30,
        "migration_repeats": 3,
    }
    service = (units / "vhdtool-nightly.service").read_text()
    assert f'-e "@{units}/vhdtool-nightly.json" vhdtool.lab.lab\n' in service
    assert "changed=0" not in first.stdout
    again = play("--check", nightly_unit_dir=str(units), **more)
    assert "changed=0" in again.stdout, again.stdout
    gone = play(entry="remove", nightly_unit_dir=str(units))
    assert gone.returncode == 0, gone.stdout
    assert list(units.iterdir()) == []


def test_a_directory_without_vhdtool_is_refused(units: Path, tmp_path: Path) -> None:
    done = play(nightly_unit_dir=str(units), nightly_directory=str(tmp_path))
    assert done.returncode != 0
    assert f"{tmp_path}/.venv/bin/ansible-playbook: not found; install vhdtool" in done.stdout
    assert list(units.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"nightly_inventory": "inventory/nope"}, f"{ROOT}/inventory/nope: not found; name the"),
        ({"nightly_user": "no-such-user"}, "nightly_user: no-such-user is no user of this machine"),
        ({"nightly_on_calendar": "sometimes"}, "nightly_on_calendar: sometimes is no time;"),
    ],
)
def test_a_night_that_could_not_run_is_refused(
    given: dict[str, str], told: str, units: Path
) -> None:
    words = {"nightly_directory": str(ROOT), "nightly_inventory": "inventory/local", **given}
    done = play(nightly_unit_dir=str(units), **words)
    assert done.returncode != 0
    assert told in done.stdout
    assert list(units.iterdir()) == []
