"""What the roles say about themselves agrees with the code that they call."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Template

from vhdtool.lab.options import OPTIONS, RunOptions

ROOT = Path(__file__).resolve().parent.parent.parent
MIGRATION = ROOT / "roles" / "migration"
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def specs(role: Path) -> Any:
    return yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]


def options(role: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in specs(role).values():
        found.update(entry["options"])
    return found


def test_the_role_specifies_the_options_of_the_schema() -> None:
    described = options(MIGRATION)
    for option in OPTIONS:
        entry = described[f"migration_{option.variable}"]
        assert (entry["type"], entry["description"]) == (option.kind, option.help)
        assert tuple(entry.get("choices", ())) == option.choices


def test_the_role_has_the_defaults_of_the_schema() -> None:
    defaults = yaml.safe_load((MIGRATION / "defaults" / "main.yml").read_text())
    for option in OPTIONS:
        assert option.read(defaults[f"migration_{option.variable}"]) == option.read(option.default)
        assert option.read(option.default) == getattr(RunOptions(), option.field)


def test_the_role_hands_every_option_on_and_asks_first() -> None:
    variables = yaml.safe_load((MIGRATION / "vars" / "main.yml").read_text())
    names = {option.field: f"migration_{option.variable}" for option in OPTIONS}
    words = {name: f"{{{{ {name} }}}}" for name in names.values()}
    assert variables["migration_options"] == words
    lines = (MIGRATION / "templates" / "config.json.j2").read_text().splitlines()
    for field, name in names.items():
        assert f' "{field}": {{{{ {name} | to_json }}}},' in lines


def test_the_tables_in_the_docs_are_those_of_the_schema() -> None:
    readme, hardware = ((ROOT / page).read_text() for page in ("README.md", "docs/hardware.md"))
    for option in OPTIONS:
        name, default = f"migration_{option.variable}", f" `{option.default}` "
        default = default if option.default else " "
        if option.make:
            row = f"| `{option.make}=` | `{name}=` |{default}| {option.help} |\n"
            assert row in readme, f"README.md lacks the line {row}"
        make = f" `{option.make}` " if option.make else " "
        row = f"| `{name}` |{default}|{make}| {option.help} |\n"
        assert row in hardware, f"docs/hardware.md lacks the line {row}"


def test_the_list_of_packages_in_the_docs_is_that_of_the_roles() -> None:
    role = ROOT / "roles" / "hypervisor_kvm" / "defaults" / "main.yml"
    names = [*yaml.safe_load(role.read_text())["hypervisor_kvm_packages"], "nfs-common"]
    command = f"apt-get install --no-install-recommends {' '.join(names)}\n"
    assert command in (ROOT / "docs" / "hardware.md").read_text()


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_default_is_described_and_named_after_its_role(role) -> None:
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    described = options(role)
    assert set(defaults) == set(described)
    assert all(name.startswith(f"{role.name}_") for name in described)
    assert all(option.get("description") and option.get("type") for option in described.values())
    for name, default in defaults.items():
        assert described[name].get("default") == default, name


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_entry_point_has_tasks_and_a_specification(role) -> None:
    entries = {path.stem for path in (role / "tasks").glob("*.yml")} - {"nfs", "unmount"}
    assert entries == set(specs(role))


def test_the_units_of_the_mount_are_understood_by_systemd(tmp_path: Path) -> None:
    role = ROOT / "roles" / "shared_storage"
    values = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    values |= {"shared_storage_nfs": "s:/e", "shared_storage_unit": {"stdout": "srv-vhdlab.mount"}}
    names = {"nfs.mount": "srv-vhdlab.mount", "retry.service": "vhdlab-mount.service"}
    for source, name in names.items():
        text = (role / "templates" / f"{source}.j2").read_text()
        (tmp_path / name).write_text(Template(text).render(values))
    command = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in names.values())]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
