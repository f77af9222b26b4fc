"""The collection vhdtool.lab: what is packed, what is documented, which variables a role uses."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import vhdtool

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}


def plugin(kind: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "plugins" / kind / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_collection_has_the_version_of_the_package() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert galaxy["version"] == vhdtool.__version__


def test_a_built_collection_has_what_playbooks_need_only(tmp_path: Path) -> None:
    command = [str(BIN / "ansible-galaxy"), "collection", "build", "--output-path", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    (built,) = tmp_path.iterdir()
    with tarfile.open(built) as archive:
        names = [member.name for member in archive if member.isfile()]
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        *("MANIFEST.json", "FILES.json", "LICENSE", "CHANGELOG.md"),
        *("meta", "playbooks", "plugins", "roles", "inventory"),
    }
    assert [name for name in names if name.startswith("inventory/local")] == []
    assert [name for name in names if "__pycache__" in name] == []
    assert {"playbooks/README.md", *(f"roles/{role}/README.md" for role in ROLES)} <= {*names}


@pytest.mark.parametrize("kind", ["module", "callback"])
def test_ansible_doc_describes_every_plugin(kind: str) -> None:
    folder = {"module": "modules"}.get(kind, kind)
    plugins = [f"vhdtool.lab.{path.stem}" for path in (ROOT / "plugins" / folder).glob("*.py")]
    command = [str(BIN / "ansible-doc"), "--json", "-t", kind, *plugins]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    found = json.loads(done.stdout)
    assert set(found) == set(plugins)
    assert all(entry["doc"]["short_description"] for entry in found.values())
    if kind == "module":
        assert all(entry["examples"] and entry["return"] for entry in found.values())


def test_every_action_plugin_has_a_module_that_documents_it() -> None:
    actions = {path.stem for path in (ROOT / "plugins" / "action").glob("*.py")}
    assert actions <= {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}


def without_messages(value: object) -> object:
    """YAML without the texts for users, which may name what they have set."""
    if isinstance(value, dict):
        return {k: without_messages(v) for k, v in value.items() if k not in ("fail_msg", "name")}
    return [without_messages(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("role", ROLES)
def test_no_role_uses_a_variable_of_another_role(role: str) -> None:
    others = "|".join(other for other in ROLES if other != role)
    variable = re.compile(rf"(?<![\w.])(?:{others})_\w+")
    folder = ROOT / "roles" / role
    texts = {path: path.read_text() for path in folder.glob("templates/*")}
    # What the timer's playbook is given: it uses the variables, and not this role.
    texts.pop(folder / "templates" / "vhdtool-nightly.json.j2", None)
    for path in [*folder.glob("tasks/*"), *folder.glob("defaults/*"), *folder.glob("vars/*")]:
        texts[path] = json.dumps(without_messages(yaml.safe_load(path.read_text())))
    for path, text in texts.items():
        assert set(variable.findall(text)) - set(ROLES) == set(), path


@pytest.mark.parametrize("role", ROLES)
def test_a_role_sets_no_variable_without_its_name(role: str) -> None:
    for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        for task in yaml.safe_load(path.read_text()):
            named = [*task.get("vars", {}), *task.get("ansible.builtin.set_fact", {})]
            named += [task["register"]] if "register" in task else []
            assert [name for name in named if not name.startswith(f"{role}_")] == [], path


def test_playbooks_hand_on_the_defaults_that_roles_have() -> None:
    defaults: dict[str, Any] = {}
    for role in ROLES:
        defaults |= yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    handed = [
        (name, *match.groups())
        for play in yaml.safe_load((ROOT / "playbooks" / "migrate.yml").read_text())
        for name, value in play.get("vars", {}).items()
        if (match := re.fullmatch(r"{{ (\w+) \| default\('(.*)'\) }}", str(value)))
    ]
    assert len(handed) == 4
    for name, source, default in handed:
        assert defaults[name] == defaults[source] == default


def test_a_collection_without_the_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    action = plugin("action", "vhdtool")
    assert action.missing_package() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'vhdtool[lab]'" in action.missing_package()


@pytest.mark.parametrize(
    ("run_tags", "skip_tags", "parts"),
    [
        (["all"], [], ["migrate", "verify"]),
        (["tagged"], ["verify"], ["migrate"]),
        (["verify"], [], ["verify"]),
        (["provision"], [], []),
    ],
)
def test_tags_choose_parts_of_a_playbook(
    run_tags: list[str], skip_tags: list[str], parts: list[str]
) -> None:
    selection = plugin("action", "selection")
    assert selection.chosen(["migrate", "verify"], run_tags, skip_tags) == parts
    problem = selection.tag_problem(["migrate", "verify"], run_tags, skip_tags, False)
    assert (problem is None) == bool(parts)
    assert selection.tag_problem(["migrate", "verify"], run_tags, skip_tags, True) is None


def test_a_limit_must_leave_the_controller_and_both_hosts() -> None:
    left_out = plugin("action", "selection").left_out
    groups = {"all": ["a", "b"], "hypervisors": ["a", "b"]}
    assert left_out({"groups": groups, "ansible_play_hosts_all": ["a", "b"]}) == []
    limited = {"groups": groups, "ansible_play_hosts_all": ["b"], "ansible_limit": "b"}
    assert left_out(limited) == ["a", "localhost"]


DESCRIBED = {"migration": {"migration_seed", "migration_strategies"}, "guest": {"guest_dir"}}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("migration_sead", "migration_sead: no such variable; did you mean migration_seed?"),
        ("migration_strategy", "no such variable; did you mean migration_strategies?"),
        ("migraton_seed", "migraton_seed: no such variable; did you mean migration_seed?"),
        ("guest_os", "`ansible-doc -t role vhdtool.lab.guest` lists them"),
    ],
)
def test_an_unknown_extra_variable_is_refused(name: str, told: str) -> None:
    (line,) = plugin("action", "variables").unknown([name, "migration_seed", "other"], DESCRIBED)
    assert told in line


def test_an_option_as_make_names_it_is_refused() -> None:
    module = plugin("action", "variables")
    described = module.described_variables(ROOT)
    of_make = module.variables_of_make()
    names = [
        *of_make,
        *(name.lower() for name in of_make),
        "LAB",
        "KEEP",
        "N",
        "strategys",
        "runs_dir",
    ]
    told = module.without_role(
        [*names, "migration_seed", "guest_dir", "awx_job_id"], described, of_make
    )
    assert [line.partition(":")[0] for line in told] == sorted(names)
    for name, variable in of_make.items():
        line = f"no such variable; did you mean {variable}?"
        assert variable in set().union(*described.values())
        assert {f"{name}: {line}", f"{name.lower()}: {line}"} <= set(told)
    assert "strategys: no such variable; did you mean migration_strategies?" in told
    assert "LAB: no such variable; choose the hosts by an inventory, -i" in told


def test_an_inventory_may_have_variables_of_other_roles() -> None:
    unknown = plugin("action", "variables").unknown
    names = ["guest_os", "migration_plan", "ansible_host"]
    assert unknown(names, DESCRIBED, misspelt_only=True) == []
    (line,) = unknown([*names, "guest_dirs"], DESCRIBED, misspelt_only=True)
    assert line == "guest_dirs: no such variable; did you mean guest_dir?"


def playbook(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ansible-playbook"), "-i", "inventory/hardware.example", *words]
    command.append(f"vhdtool.lab.{name}")
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "name", ["lab", "provision", "migrate", "report", "verify", "teardown", "nightly"]
)
def test_every_playbook_refuses_a_misspelt_variable_first(name: str, tmp_path: Path) -> None:
    done = playbook(name, "-e", f"migration_sead=3 migration_run_dir={tmp_path}/run")
    assert done.returncode != 0
    told = "localhost: FAILED: migration_sead: no such variable; did you mean migration_seed?"
    assert told in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_ansible_knows_each_key_of_the_configuration() -> None:
    command = [str(BIN / "ansible-config"), "validate", "-c", "ansible.cfg"]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (True, "Completely failed to parse inventory source /no/such"),
        (
            False,
            "the group hypervisors of the inventory has 0 hosts; a migration needs exactly two",
        ),
    ],
)
def test_an_inventory_that_is_absent_is_named(config: bool, told: str, tmp_path: Path) -> None:
    """Without the checkout's configuration Ansible goes on, with an inventory of localhost."""
    (tmp_path / "ansible.cfg").touch()
    environment = {**ENVIRONMENT, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections")}
    if not config:
        environment["ANSIBLE_CONFIG"] = str(tmp_path / "ansible.cfg")
    run = f"migration_run_dir={tmp_path}/run"
    command = [str(BIN / "ansible-playbook"), "-i", "/no/such", "-e", run, "vhdtool.lab.lab"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_the_example_inventory_gives_no_warning_anywhere(tmp_path: Path) -> None:
    command = [str(BIN / "ansible-inventory"), "-i", str(ROOT / "inventory/hardware.example")]
    (tmp_path / "ansible.cfg").touch()
    environment = {**ENVIRONMENT, "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")}
    done = subprocess.run(
        [*command, "--list"], env=environment, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    hosts = json.loads(done.stdout)["_meta"]["hostvars"]
    assert hosts["kvm1"]["migration_ssh_config"] == "{{ inventory_dir }}/ssh.cfg"
