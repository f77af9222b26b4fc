"""Refuses variables that look like those of the collection's roles, or options, and are none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

COLLECTION = Path(__file__).resolve().parents[2]
OF_MAKE_ALONE = {
    "LAB": "choose the hosts by an inventory, -i",
    "KEEP": "a playbook never ends the hosts",
    "N": "did you mean migration_repeats?",
}
NEAR, PREFIXED = 0.85, 0.75
"""How like a known name a misspelt one must be: any name, and one with the prefix of a role."""


def described_variables(collection: Path) -> dict[str, set[str]]:
    """{role: names in its argument specifications}."""
    found = {}
    for path in sorted(collection.glob("roles/*/meta/argument_specs.yml")):
        entries = yaml.safe_load(path.read_text())["argument_specs"].values()
        found[path.parent.parent.name] = {name for one in entries for name in one["options"]}
    return found


def used_variables(collection: Path, roles: Iterable[str]) -> set[str]:
    """Every name that tasks and playbooks mention: they register variables of their own."""
    name = re.compile(rf"\b(?:{'|'.join(roles)})_\w+")
    paths = [*collection.glob("roles/*/tasks/*.yml"), *collection.glob("playbooks/*.yml")]
    return {word for path in paths for word in name.findall(path.read_text())}


def unknown(
    given: Iterable[str], described: Mapping[str, set[str]], misspelt_only: bool = False
) -> list[str]:
    """A sentence for each name that is nearly a known one, or begins as a role's variables do."""
    every = sorted(set().union(*described.values()))
    found = []
    for name in sorted(set(given) - set(every)):
        roles = [] if misspelt_only else [one for one in described if name.startswith(f"{one}_")]
        close = difflib.get_close_matches(name, every, 1, PREFIXED if roles else NEAR)
        if close:
            found.append(f"{name}: no such variable; did you mean {close[0]}?")
        elif roles:
            role = f"vhdtool.lab.{roles[-1]}"
            found.append(f"{name}: no such variable; `ansible-doc -t role {role}` lists them")
    return found


def variables_of_make() -> dict[str, str]:
    """{option of make: its variable}; empty without the package, which another task reports."""
    try:
        from vhdtool.lab.options import OPTIONS
        from vhdtool.lab.reproduce import LOCAL
    except ImportError:
        return {}
    return {**{one.make: f"migration_{one.variable}" for one in OPTIONS if one.make}, **LOCAL}


def without_role(
    given: Iterable[str], described: Mapping[str, set[str]], of_make: Mapping[str, str]
) -> list[str]:
    """A sentence for each option that is named without its role, or as make names it."""
    options = [name.removeprefix("migration_") for name in sorted(described["migration"])]
    found = []
    for name in sorted(given):
        if any(name.startswith(f"{role}_") for role in described):
            continue
        close = difflib.get_close_matches(name.lower(), options, 1, PREFIXED)
        if name in OF_MAKE_ALONE:
            found.append(f"{name}: no such variable; {OF_MAKE_ALONE[name]}")
        elif name.upper() in of_make:
            found.append(f"{name}: no such variable; did you mean {of_make[name.upper()]}?")
        elif close:
            found.append(f"{name}: no such variable; did you mean migration_{close[0]}?")
    return found


def of_inventory(variables: Mapping[str, Any]) -> set[str]:
    """Names of all variables of the hosts that a run uses."""
    every = variables["hostvars"]
    hosts = {"localhost", *variables["groups"].get("hypervisors", ())}
    return {name for host in hosts if host in every for name in every[host]}


class ActionModule(ActionBase):  # type: ignore[misc]
    """See the module of the same name for arguments and results."""

    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec={})
        assert task_vars is not None
        described = described_variables(COLLECTION)
        extra = load_extra_vars(self._loader)
        given = set(extra)
        problems = unknown(given, described)
        problems += without_role(given, described, variables_of_make())
        others = of_inventory(task_vars) - given - used_variables(COLLECTION, described)
        # The inventory may belong to other playbooks as well, with a role `guest` of their own.
        problems += unknown(others, described, misspelt_only=True)
        if problems:
            return {"failed": True, "msg": "; ".join(problems)}
        ours = set().union(*described.values())
        return {"changed": False, "given": {name: extra[name] for name in sorted(given & ours)}}
