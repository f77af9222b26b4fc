"""What the roles say about themselves agrees with the code that they call."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vhdtool.lab.options import OPTIONS, RunOptions
from vhdtool.lab.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent.parent
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def specs(role: Path) -> Any:
    return yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]


def options(role: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in specs(role).values():
        found.update(entry["options"])
    return found


def test_the_strategies_that_may_be_asked_for_are_those_that_exist() -> None:
    (migration,) = [role for role in ROLES if role.name == "migration"]
    choices = options(migration)["migration_strategies"]["choices"]
    assert sorted(choices) == sorted(["all", *STRATEGIES])


def test_the_role_has_the_options_of_a_run_with_the_same_defaults_and_choices() -> None:
    (migration,) = [role for role in ROLES if role.name == "migration"]
    described, usual = options(migration), RunOptions()
    defaults = yaml.safe_load((migration / "defaults" / "main.yml").read_text())
    asked = yaml.safe_load((migration / "vars" / "main.yml").read_text())["migration_words"]
    assert set(asked) == {f"migration_{option.variable}" for option in OPTIONS}
    for option in OPTIONS:
        name = f"migration_{option.variable}"
        assert option.read(defaults[name]) == getattr(usual, option.field)
        for choice in described[name].get("choices", []):
            option.read(choice)


def test_the_tables_in_the_docs_name_every_option() -> None:
    for page, prefix in (("README.md", ""), ("docs/hardware.md", "migration_")):
        text = (ROOT / page).read_text()
        for option in OPTIONS:
            name = f"migration_{option.variable}" if prefix else f"{option.make}="
            assert f"`{name}`" in text or option.make is None, f"{page} lacks {name}"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_default_is_described_and_named_after_its_role(role) -> None:
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    described = options(role)
    assert set(defaults) == set(described)
    assert all(name.startswith(f"{role.name}_") for name in described)
    assert all(option.get("description") and option.get("type") for option in described.values())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_entry_point_has_tasks_and_a_specification(role) -> None:
    entries = {path.stem for path in (role / "tasks").glob("*.yml")} - {"nfs"}
    assert entries == set(specs(role))
