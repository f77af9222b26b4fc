"""The command that repeats a case where it was run: `make lab`, or the playbook with its inventory.

It names every option that differs from its default, and the other variables of the roles that
were given on the command line. What the inventory says, the inventory says again.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vhdtool.lab.options import OPTIONS, Option, RunOptions

LOCAL = {"SHARED_SIZE": "local_hosts_shared_size", "SHARED": "local_hosts_shared_source"}
"""Variables of make that are no options of the run -> variables of the role local_hosts."""
OF_THE_RUN = (
    "migration_run_dir",
    "migration_soak",
    "migration_inventory",
    "migration_pack",
    "migration_keep_runs",
)
"""Variables that change nothing in a case."""
_PLAIN = re.compile(r"[\w./,:@%+-]+", re.ASCII)


def make_command(options: RunOptions, given: Mapping[str, Any]) -> str:
    """`make lab` with these options; `given` are further variables of the roles."""
    pairs = [(one.make, value) for one, value in _differing(options) if one.make]
    pairs += [(name, given[variable]) for name, variable in LOCAL.items() if given.get(variable)]
    return " ".join(["make lab", *(_quoted(f"{name}={value}", name) for name, value in pairs)])


def playbook_command(
    options: RunOptions, inventories: Iterable[str], given: Mapping[str, Any]
) -> str:
    """`ansible-playbook` with these inventories and options, from the current directory."""
    program = os.path.relpath(Path(sys.executable).with_name("ansible-playbook"))
    words = [shlex.quote(program), *(f"-i {shlex.quote(one)}" for one in inventories)]
    pairs = {f"migration_{one.variable}": value for one, value in _differing(options)}
    known = {f"migration_{one.variable}" for one in OPTIONS}
    pairs |= {
        name: value for name, value in given.items() if name not in known and name not in OF_THE_RUN
    }
    return " ".join([*words, "vhdtool.lab.lab", *map(_extra, pairs.items())])


def _differing(options: RunOptions) -> list[tuple[Option, Any]]:
    """The options that decide what is run, and those that differ from their defaults."""
    usual = RunOptions()
    always = {"seed", "guard", *(("steps", "expect") if options.steps else ("strategies",))}
    found = []
    for option in OPTIONS:
        value = getattr(options, option.field)
        if option.field in always or value != getattr(usual, option.field):
            found.append((option, ",".join(value) if isinstance(value, tuple) else value))
    return found


def _quoted(word: str, name: str) -> str:
    """A word of make's command line; the quotes are around the value alone."""
    value = word.removeprefix(f"{name}=").replace("$", "$$")
    return f"{name}={shlex.quote(value)}"


def _extra(pair: tuple[str, Any]) -> str:
    """A variable for Ansible. Of `name=value` it takes the value's first word only, hence JSON."""
    name, value = pair
    if isinstance(value, bool | str | int) and _PLAIN.fullmatch(str(value)):
        return f"-e {name}={str(value).lower() if isinstance(value, bool) else value}"
    return "-e " + shlex.quote(json.dumps({name: value}, ensure_ascii=False))
