"""docs/environment.md lists each environment variable that the sources read, and no other."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from vhdtool.lab.options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
PYTHON = ("vhdtool", "tests", "plugins", "benchmarks", "scripts")
SHELL = ("bisect", "lint", "setup", "test", "report-picture")
NAME = re.compile(r"_?[A-Z][A-Z0-9_]*")
BY_NAME_OF_A_CONSTANT = {
    "vhdtool/nbd/fast_path.py": {"VHDTOOL_FAST_PATH", "VHDTOOL_STRAIGHT"},
    "vhdtool/cli/commands/hosts.py": {"VHDLAB_RUN"},
    "vhdtool/cli/commands/machines.py": {"VHDLAB_RUN"},
    "plugins/action/vhdtool.py": {"VHDLAB_HOLDER", "VHDLAB_RUN"},
    "scripts/lab": {*filter(None, (option.make for option in OPTIONS)), "HOME"},
}
"""Modules that read a variable by a name that is not written in the call, or from a copy."""
BY_LIBRARIES = {"_VHDTOOL_COMPLETE"}


def python_files() -> Iterator[tuple[str, ast.Module]]:
    paths = [path for folder in PYTHON for path in (ROOT / folder).rglob("*.py")]
    for path in [*paths, ROOT / "scripts" / "lab"]:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def is_environment(node: ast.expr) -> bool:
    """`os.environ`, or a copy that is named `environment`."""
    return ast.unparse(node) in ("os.environ", "environment")


def keys(tree: ast.Module) -> Iterator[ast.expr]:
    """The expression for the variable's name, of each read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr in ("get", "setdefault"):
                if is_environment(function.value):
                    yield node.args[0]
            elif ast.unparse(function) == "os.getenv":
                yield node.args[0]
            yield from (word.value for word in node.keywords if word.arg == "envvar")
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            if is_environment(node.value):
                yield node.slice
        elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
            yield node.left


@functools.cache
def read_by_python() -> tuple[set[str], set[str]]:
    """The variables that are read by a literal name, and the modules that read others."""
    found, others = set(), set()
    for name, tree in python_files():
        for key in keys(tree):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                found.add(key.value)
            else:
                others.add(name)
    return found, others


def read_by_shell() -> set[str]:
    found = set()
    for name in SHELL:
        text = (ROOT / "scripts" / name).read_text(encoding="utf-8")
        found |= set(re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", text))
    return found


def read_by_make() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"\$\((?:or |if )?\$?\(?([A-Z]+)\b", text))


def read_by_ansible() -> set[str]:
    paths = [path for folder in ("roles", "playbooks") for path in (ROOT / folder).rglob("*.yml")]
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    return set(re.findall(r"lookup\('(?:ansible\.builtin\.)?env', '(\w+)'", text))


def documented() -> set[str]:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_a_name_that_is_not_literal_is_known() -> None:
    _, others = read_by_python()
    assert others <= set(BY_NAME_OF_A_CONSTANT)


def test_each_variable_that_is_read_is_documented() -> None:
    literal, _ = read_by_python()
    read = literal | read_by_shell() | read_by_make() | read_by_ansible()
    read = read.union(BY_LIBRARIES, *BY_NAME_OF_A_CONSTANT.values())
    assert all(NAME.fullmatch(name) for name in documented())
    assert read - documented() == set()
    assert documented() - read == set()
